"""``clbench-diff A B``: what differs between two runs, and whether their results do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from clbench.config.display import console
from clbench.config.hashing import differing
from clbench.config.messages import user_message
from clbench.config.options import ELSEWHERE
from clbench.errors import ConfigError
from clbench.runs.find import FoundRun, read_run

RESULTS = ("accuracy_matrix", "initial_accuracy", "per_task", "validation", "within_tasks")
"""Keys of metrics.json that say what came out."""

Values = tuple[Any, Any]


class Difference(NamedTuple):
    """What differs between runs A and B.

    Attributes:
        config: key -> the values of A and B, "" where there is none; keys that decide results.
        elsewhere: the same of keys that say where and how a run is done, but its folder.
        made_with: the same of versions and machine.
        identical: whether every number that came out is the same to the last bit.
        finished: tasks that A and B have learned.
        largest: the largest absolute difference of R over the tasks that both have learned; nan if R has another shape.
        first: the first task after which R differs; None if R is the same.
    """

    config: dict[str, Values]
    elsewhere: dict[str, Values]
    made_with: dict[str, Values]
    identical: bool
    finished: tuple[int, int]
    largest: float
    first: int | None


def difference(a: Path, b: Path) -> Difference:
    """Compare two run folders.

    Raises:
        ConfigError: one of them is not a run, or has no results yet.
    """
    one, two = _run(a), _run(b)
    first, second = (run.metrics or {} for run in (one, two))
    derived = one.derived | two.derived
    config = {key: pair for key, pair in differing(one.config, two.config).items() if key not in derived}
    where = {key: values for key, values in config.items() if key.split(".")[0] in ELSEWHERE}
    made = [{**m.get("versions", {}), **m.get("machine", {})} for m in (first, second)]
    r, s = (np.array(m["accuracy_matrix"], dtype=float) for m in (first, second))
    largest, task = compare(r, s)
    return Difference(
        config={key: values for key, values in config.items() if key not in where},
        elsewhere={key: values for key, values in where.items() if key != "output_dir"},
        made_with=differing(*made),
        identical=all(first.get(key) == second.get(key) for key in RESULTS),
        finished=(_learned(r), _learned(s)),
        largest=largest,
        first=task,
    )


def compare(r: np.ndarray, s: np.ndarray) -> tuple[float, int | None]:
    """The largest absolute difference of accuracy matrices r, s (T, T), and the first row that differs; nan is not learned.

    Rows that only one of them has do not count. Another number of tasks gives (nan, 0).
    """
    if r.shape != s.shape:
        return float("nan"), 0
    both = min(_learned(r), _learned(s))
    gaps = np.abs(r[:both] - s[:both]).max(axis=1, initial=0.0)
    return float(gaps.max(initial=0.0)), int(np.argmax(gaps > 0)) if gaps.any() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what differs; 0 if the results are identical, 1 if not, as diff does."""
    asked = _parser().parse_args(arguments)
    found = difference(Path(asked.a), Path(asked.b))
    terminal = console()
    for title, values in (("config", found.config), ("where and how", found.elsewhere), ("made with", found.made_with)):
        if values:
            table = Table(title, Column(Text(asked.a)), Column(Text(asked.b)))
            for key, pair in values.items():
                table.add_row(key, *(Text("null" if value is None else str(value)) for value in pair))
            terminal.print(table)
    if not found.config:
        terminal.print("the configurations are the same")
    terminal.print(said(found), soft_wrap=True)
    return 0 if found.identical else 1


def said(found: Difference) -> str:
    """Whether results differ, in a sentence."""
    if found.identical:
        return "the results are bit-identical"
    if np.isnan(found.largest):
        return "the results differ: another number of tasks"
    done = "" if found.finished[0] == found.finished[1] else "{} and {} tasks are learned; ".format(*found.finished)
    if found.first is None:
        what = "in the tasks that both have learned, " if done else ""
        return (
            f"the results differ: {done}{what}R is the same{'' if done else ', other numbers of metrics.json are not'}"
        )
    return f"the results differ: {done}R by at most {found.largest:.6f}, first after task {found.first + 1}"


def _run(folder: Path) -> FoundRun:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give the output_dir of a run, or the folder of a run in a sweep")
    run = read_run(folder)
    if run.problem is not None:
        raise ConfigError(f"{folder} is not a run with results: {run.problem}")
    if "accuracy_matrix" not in (run.metrics or {}):
        raise ConfigError(f"{folder} is not a run with results: its metrics.json is not one of clbench")
    return run


def _learned(r: np.ndarray) -> int:
    """Rows of an accuracy matrix that are complete."""
    return int(np.isfinite(r).all(axis=1).sum())


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "clbench-diff", description="What differs between two runs; exit code 1 if results do."
    )
    made.add_argument("a", metavar="A", help="output_dir of a run")
    made.add_argument("b", metavar="B", help="output_dir of another")
    return made


def cli() -> None:
    """The command ``clbench-diff``; exit code 2 where the runs cannot be compared."""
    try:
        sys.exit(main())
    except Exception as error:
        if (told := user_message(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
