"""What a sweep has to do, and what it says before it begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clbench.errors import SweepFailed
from clbench.runs.folder import FINISHED
from clbench.sweep.estimate import estimate_cost
from clbench.sweep.grid import Compose, PlannedRun, count_other_runs, plan_runs

MANY = 8  # runs, from which on it is worth a few seconds to say how long they take


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep and what of them is done.

    Args:
        runs: the runs, all different.
        asked: how many runs were asked for, equal ones counted each.
        folder: of the sweep.
    """

    runs: list[PlannedRun]
    asked: int
    folder: Path

    @classmethod
    def of(cls, grid: Sequence[Sequence[str]], compose: Compose, folder: Path) -> SweepPlan:
        """The work for the overrides in ``grid``."""
        return cls(plan_runs(grid, compose), len(grid), folder)

    def only(self, runs: list[PlannedRun]) -> SweepPlan:
        """The work for some of them."""
        return replace(self, runs=runs, asked=len(runs))

    @property
    def to_do(self) -> list[PlannedRun]:
        """What is not done."""
        return [run for run in self.runs if not run.done(self.folder)]

    def complete(self) -> list[dict[str, Any] | None]:
        """metrics.json of each run that has learned all its tasks by now."""
        found = [run.metrics(self.folder) for run in self.runs]
        return [m if m is not None and m["status"] == FINISHED else None for m in found]


def announce(plan: SweepPlan) -> None:
    """Say how many runs there are, what of them is done, and what the rest will take."""
    lines = [f"{len(plan.runs)} runs in {plan.folder}"]
    if (same := plan.asked - len(plan.runs)) > 0:
        why = "duplicates: they differ only in options that their strategy does not have"
        lines[0] += f" ({same} of {plan.asked} combinations are {why})"
    to_do = plan.to_do
    begun = sum(run.learned(plan.folder) > 0 for run in to_do)
    if begun or len(to_do) < len(plan.runs):
        done = len(plan.runs) - len(to_do)
        lines.append(
            f"{done} are done and not run again, {begun} resume where they stopped, {len(to_do) - begun} are new"
        )
    if foreign := count_other_runs(plan.folder, plan.runs):
        what = "run of another configuration is" if foreign == 1 else "runs of other configurations are"
        lines.append(f"{foreign} {what} there too, left alone")
    print("\n".join(lines), file=sys.stderr)
    if len(to_do) >= MANY or (to_do and to_do[0].cfg.dry_run):
        print(estimate_cost(to_do), file=sys.stderr)


def raise_if_unfinished(plan: SweepPlan) -> None:
    """Raise SweepFailed if runs are not done, because they failed or because they never began."""
    missing = len(plan.to_do)
    if missing:
        raise SweepFailed(
            f"{missing} of {len(plan.runs)} runs are not done, see the table; the others are, and the same command runs what is "
            "missing"
        )
