"""lam chosen on the first tasks: what a learner may know before the rest of the sequence has come (Chaudhry et al. 2019)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from clbench.config.display import console
from clbench.config.messages import user_message
from clbench.errors import ConfigError, SweepFailed, Unstable
from clbench.sweep.grid import PlannedRun


class LamResult(NamedTuple):
    """Runs that differ in their seed only, and their result on the first tasks.

    Attributes:
        runs: the runs.
        accuracy: mean validation accuracy after the first tasks; None if weights of one became non-finite.
        problem: what is said then.
        chosen: whether their lam is.
    """

    runs: list[PlannedRun]
    accuracy: float | None
    problem: str
    chosen: bool


def check_selection(runs: Sequence[PlannedRun], tasks: int) -> None:
    """Raise ConfigError if there is nothing to choose by."""
    if not isinstance(tasks, int) or tasks < 1:
        raise ConfigError(f"select_lam_on_first_tasks={tasks}: it is a whole number of tasks, at least 1")
    if any(run.cfg.data.get("validation") == 0 for run in runs):
        raise ConfigError(
            f"select_lam_on_first_tasks={tasks} needs validation data: data.validation is 0, set it above"
        )


def lam_groups(runs: Sequence[PlannedRun]) -> list[list[list[PlannedRun]]]:
    """Return the runs that differ in lam and seed only, by lam; of each such group one lam is to be chosen."""
    groups: dict[str, dict[Any, list[PlannedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.kind][run.cfg.lam].append(run)
    return [list(by_lam.values()) for by_lam in groups.values()]


def accuracy(metrics: Mapping[str, Any], tasks: int) -> float:
    """Mean validation accuracy on the first ``tasks`` tasks, after the last of them."""
    row: list[float] = metrics["validation"]["accuracy_matrix"][tasks - 1][:tasks]
    return sum(row) / tasks


def select_lam(
    groups: Sequence[Sequence[Sequence[PlannedRun]]],
    found: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, BaseException],
    tasks: int,
) -> list[LamResult]:
    """Each lam of each group with its mean over seeds; the best of a group is chosen, at a tie the smaller lam.

    Args:
        groups: of ``lam_groups``.
        found: metrics.json by name of the runs that have learned the first tasks.
        errors: by name, why others have not.
        tasks: how many first tasks count.

    Raises:
        SweepFailed: a run has not learned them, for another reason than that its weights became non-finite, or all of a
            group became so: then there is nothing to choose by.
    """
    tried = []
    for by_lam in groups:
        rows = [_tried(runs, found, errors, tasks) for runs in by_lam]
        means = [(row.accuracy, -(row.runs[0].cfg.lam or 0)) for row in rows if row.accuracy is not None]
        if not means:
            raise SweepFailed(f"no lam can be chosen for {rows[0].runs[0].strategy}: {rows[0].problem}")
        best = max(means)
        tried += [row._replace(chosen=(row.accuracy, -(row.runs[0].cfg.lam or 0)) == best) for row in rows]
    return tried


def _tried(
    runs: Sequence[PlannedRun], found: Mapping[str, Mapping[str, Any]], errors: Mapping[str, BaseException], tasks: int
) -> LamResult:
    for run in runs:
        if run.name not in found:
            error = errors.get(run.name)
            why = "it was not done" if error is None else user_message(error) or repr(error)
            if not isinstance(error, Unstable):
                raise SweepFailed(
                    f"lam cannot be chosen on the first {tasks} tasks: {run.name} has not learned them ({why}). Rerun the "
                    "same command to resume"
                )
            return LamResult(list(runs), None, why, False)
    return LamResult(list(runs), sum(accuracy(found[run.name], tasks) for run in runs) / len(runs), "", False)


def show_selection(tried: Sequence[LamResult], tasks: int) -> None:
    """A row per lam."""
    table = Table("strategy", "lam", "seeds", f"validation accuracy on the first {tasks} tasks", "")
    for row in tried:
        run = row.runs[0]
        said = f"failed: {row.problem}" if row.accuracy is None else f"{row.accuracy:.4f}"
        texts = (run.strategy, f"{run.cfg.lam}", str(len(row.runs)), said, "chosen" if row.chosen else "")
        table.add_row(*map(Text, texts))
    console().print(table)
