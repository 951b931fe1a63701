"""Select lam on the first tasks of a sequence, which a learner may use to tune options (Chaudhry et al. 2019)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from clbench.config.display import console, text_table
from clbench.config.messages import user_message
from clbench.config.values import check_rule
from clbench.errors import ConfigError, SweepFailed, Unstable
from clbench.metrics.quality import ACCURACY, Quality, quality_of
from clbench.sweep.grid import PlannedRun


class LamResult(NamedTuple):
    """Runs that differ only in the seed, and their result on the first tasks.

    Attributes:
        runs: The runs.
        quality: Quality of the runs.
        mean: Mean of R on validation data after the first tasks, None if the weights of a run became non-finite.
        problem: Error message if ``mean`` is None.
        is_selected: Whether the lam of the runs is selected.
    """

    runs: list[PlannedRun]
    quality: Quality
    mean: float | None
    problem: str
    is_selected: bool


def check_selection(runs: Sequence[PlannedRun], tasks: int) -> None:
    """Raise ConfigError if the runs have no validation data to select lam on."""
    check_rule("select_lam_on_first_tasks", tasks)
    if any(isinstance(run.cfg.get("lam"), Sequence) for run in runs):
        raise ConfigError(
            f"select_lam_on_first_tasks={tasks}: expected numbers for lam, because a list has no order. Remove this option."
        )
    if any(run.cfg.data.get("validation") == 0 for run in runs):
        raise ConfigError(
            f"select_lam_on_first_tasks={tasks}: expected validation data, got data.validation=0. Try data.validation=0.1."
        )


def lam_groups(runs: Sequence[PlannedRun]) -> list[list[list[PlannedRun]]]:
    """Group runs that differ only in lam and seed, and group each of these by lam. One lam per group is selected."""
    groups: dict[str, dict[Any, list[PlannedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.kind][run.cfg.lam].append(run)
    return [list(by_lam.values()) for by_lam in groups.values()]


def validation_mean(metrics: Mapping[str, Any], tasks: int) -> float:
    """Return the mean of R on validation data over the first ``tasks`` tasks after the last of them."""
    matrix = metrics["validation"][quality_of(metrics).key("accuracy_matrix")]
    row: list[float] = matrix[tasks - 1][:tasks]
    return sum(row) / tasks


def select_lam(
    groups: Sequence[Sequence[Sequence[PlannedRun]]],
    found: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, BaseException],
    tasks: int,
) -> list[LamResult]:
    """Return the result of each lam of each group. The lam with the best mean over seeds is selected, the smaller one in a tie.

    Args:
        groups: Groups of ``lam_groups``.
        found: Contents of metrics.json by name, for the runs that learned the first tasks.
        errors: Errors of the other runs by name.
        tasks: Number of first tasks.

    Raises:
        SweepFailed: A run failed with another error than non-finite weights, or every lam of a group failed.
    """
    results = []
    for by_lam in groups:
        rows = [_result(runs, found, errors, tasks) for runs in by_lam]
        ranks = [rank for row in rows if (rank := _rank(row)) is not None]
        if not ranks:
            raise SweepFailed(
                f"every lam of {rows[0].runs[0].strategy} failed, so none can be selected: {rows[0].problem}"
            )
        best = max(ranks)
        results += [row._replace(is_selected=_rank(row) == best) for row in rows]
    return results


def _rank(row: LamResult) -> tuple[float, float] | None:
    """Return a key that is larger for a better mean, and for a smaller lam at equal means; None without a mean."""
    return None if row.mean is None else (row.quality.sign * row.mean, -(row.runs[0].cfg.lam or 0))


def _result(
    runs: Sequence[PlannedRun], found: Mapping[str, Mapping[str, Any]], errors: Mapping[str, BaseException], tasks: int
) -> LamResult:
    for run in runs:
        if run.name not in found:
            error = errors.get(run.name)
            reason = "it did not start" if error is None else user_message(error) or repr(error)
            if not isinstance(error, Unstable):
                raise SweepFailed(
                    f"select_lam_on_first_tasks={tasks}: {run.name} has not learned these tasks ({reason}). Rerun the same "
                    "command to resume."
                )
            return LamResult(list(runs), ACCURACY, None, reason, False)
    quality = quality_of(found[runs[0].name])
    mean = sum(validation_mean(found[run.name], tasks) for run in runs) / len(runs)
    return LamResult(list(runs), quality, mean, "", False)


def show_selection(results: Sequence[LamResult], tasks: int) -> None:
    """Print a table with a row per lam."""
    label = next(row.quality.label for row in results if row.mean is not None)
    table = text_table("strategy", "lam", "seeds", f"validation {label} on the first {tasks} tasks", "")
    for row in results:
        run = row.runs[0]
        result = f"failed: {row.problem}" if row.mean is None else f"{row.mean:.4f}"
        texts = (run.strategy, f"{run.cfg.lam}", str(len(row.runs)), result, "selected" if row.is_selected else "")
        table.add_row(*map(Text, texts))
    console().print(table)
