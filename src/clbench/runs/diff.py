"""Compare the options and results of two runs: ``clbench diff A B``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.text import Text

from clbench.config.display import console, text_table
from clbench.config.hashing import differing
from clbench.config.messages import user_message
from clbench.config.options import ELSEWHERE
from clbench.errors import ConfigError
from clbench.metrics.quality import quality_of
from clbench.metrics.results import learned_tasks, read_matrix
from clbench.runs.find import FoundRun, read_run

RESULTS = ("accuracy_matrix", "initial_accuracy", "per_task", "validation", "within_tasks")
"""Keys of metrics.json that contain results, in runs of accuracy."""

Values = tuple[Any, Any]


class Difference(NamedTuple):
    """Differences between the runs A and B.

    Attributes:
        config: Option -> values of A and B, "" for a missing value; options that affect the results.
        execution: The same for options that do not affect the results, except for the folder.
        environment: The same for package versions and the machine.
        qualities: Names of the qualities of A and B.
        is_identical: Whether all results are bit-identical.
        finished: Number of tasks that A and B learned.
        largest: Largest absolute difference of R over the tasks that both runs learned; nan for different qualities or
            shapes of R.
        first: Index of the first task after which R differs, None if R is equal.
    """

    config: dict[str, Values]
    execution: dict[str, Values]
    environment: dict[str, Values]
    qualities: tuple[str, str]
    is_identical: bool
    finished: tuple[int, int]
    largest: float
    first: int | None


def difference(a: Path, b: Path) -> Difference:
    """Compare two run folders.

    Raises:
        ConfigError: A folder is not a run folder, or has no results yet.
    """
    run_a, run_b = _read_run(a), _read_run(b)
    first, second = (run.metrics or {} for run in (run_a, run_b))
    derived = run_a.derived | run_b.derived
    config = {key: pair for key, pair in differing(run_a.config, run_b.config).items() if key not in derived}
    execution = {key: values for key, values in config.items() if key.split(".")[0] in ELSEWHERE}
    environments = [{**(m.get("versions") or {}), **(m.get("machine") or {})} for m in (first, second)]
    one, other = quality_of(first), quality_of(second)
    r, s = read_matrix(first, one), read_matrix(second, other)
    largest, task = compare(r, s) if one == other else (float("nan"), 0)
    keys = [one.key(key) for key in RESULTS]
    return Difference(
        config={key: values for key, values in config.items() if key not in execution},
        execution={key: values for key, values in execution.items() if key != "output_dir"},
        environment=differing(*environments),
        qualities=(one.name, other.name),
        is_identical=one == other and all(first.get(key) == second.get(key) for key in keys),
        finished=(learned_tasks(r), learned_tasks(s)),
        largest=largest,
        first=task,
    )


def compare(r: np.ndarray, s: np.ndarray) -> tuple[float, int | None]:
    """Return the largest absolute difference of matrices r, s (T, T), and the index of the first row that differs.

    Rows with nan (tasks not learned) in either matrix are ignored. Different numbers of tasks give (nan, 0).
    """
    if r.shape != s.shape:
        return float("nan"), 0
    both = min(learned_tasks(r), learned_tasks(s))
    differences = np.nan_to_num(np.abs(r[:both] - s[:both]))  # nan: not evaluated with eval_tasks=seen
    gaps = differences.max(axis=1, initial=0.0)
    return float(gaps.max(initial=0.0)), int(np.argmax(gaps > 0)) if gaps.any() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the differences; return 0 if the results are identical and 1 otherwise, like diff."""
    parsed = _parser().parse_args(arguments)
    found = difference(Path(parsed.a), Path(parsed.b))
    terminal = console()
    for title in ("config", "execution", "environment"):
        if values := getattr(found, title):
            table = text_table(title, parsed.a, parsed.b)
            for key, pair in values.items():
                table.add_row(Text(key), *(Text("null" if value is None else str(value)) for value in pair))
            terminal.print(table)
    if not found.config:
        terminal.print("the configurations are equal")
    terminal.print(summarize(found), soft_wrap=True)
    return 0 if found.is_identical else 1


def summarize(found: Difference) -> str:
    """Return a sentence that states whether the results differ."""
    if found.is_identical:
        return "the results are bit-identical"
    if len(set(found.qualities)) > 1:
        return "the results differ: A contains {} and B contains {}".format(*found.qualities).replace("_", " ")
    if np.isnan(found.largest):
        return "the results differ: the runs have different numbers of tasks"
    has_same_tasks = found.finished[0] == found.finished[1]
    tasks = "" if has_same_tasks else "A learned {} tasks and B learned {}, and ".format(*found.finished)
    if found.first is not None:
        return (
            f"the results differ: {tasks}R differs by at most {found.largest:.6f}, first after task {found.first + 1}"
        )
    rest = "but other numbers in metrics.json differ" if has_same_tasks else "for the tasks that both learned"
    return f"the results differ: {tasks}R is equal{',' if has_same_tasks else ''} {rest}"


def _read_run(folder: Path) -> FoundRun:
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise ConfigError(
            f"{folder}: expected a run folder, but {what}. Try the output_dir of a run, or the folder of one "
            "run in a sweep."
        )
    run = read_run(folder)
    if run.problem is not None:
        raise ConfigError(f"{folder}: expected a run with results ({run.problem}).")
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "clbench diff",
        description="Compare the options and results of two runs. The exit code is 1 if the results differ.",
    )
    parser.add_argument("a", metavar="A", help="output_dir of a run")
    parser.add_argument("b", metavar="B", help="output_dir of another run")
    return parser


def cli() -> None:
    """Run the command ``clbench diff``. The exit code is 2 if the runs cannot be compared."""
    try:
        sys.exit(main())
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
