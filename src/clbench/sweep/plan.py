"""Plan the runs of a sweep and print the plan."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from clbench.errors import SweepFailed
from clbench.experiment.describe import compare_with_current_data, fingerprint_in
from clbench.runs.folder import RunFolder
from clbench.runs.json_files import COMPLETE
from clbench.runs.nesting import check_sweep
from clbench.runs.objective import add_new_metrics
from clbench.sweep.estimate import estimate_cost
from clbench.sweep.grid import Compose, PlannedRun, count_other_runs, plan_runs

MANY = 8  # number of runs from which the estimate, which takes a few seconds, is worth its time


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep and their state.

    Args:
        runs: The runs, without duplicates.
        combinations: Number of combinations in the grid, including duplicates.
        folder: The sweep's folder.
    """

    runs: list[PlannedRun]
    combinations: int
    folder: Path

    @classmethod
    def of(cls, grid: Sequence[Sequence[str]], compose: Compose, folder: Path) -> SweepPlan:
        """Return the plan for the overrides in ``grid``."""
        return cls(plan_runs(grid, compose), len(grid), folder)

    def only(self, runs: list[PlannedRun]) -> SweepPlan:
        """Return the plan for some of the runs."""
        return replace(self, runs=runs, combinations=len(runs))

    @property
    def to_do(self) -> list[PlannedRun]:
        """The runs that are not done."""
        return [run for run in self.runs if not run.is_done(self.folder)]

    def check(self) -> None:
        """Raise ConfigError if the folder belongs to a single run, or the files of a run are damaged or cannot be written."""
        check_sweep(self.folder)
        for run in self.runs:
            if os.path.lexists(self.folder / run.name):
                RunFolder(self.folder / run.name, run.hash, run.cfg.checkpoints)

    def complete(self) -> list[dict[str, Any] | None]:
        """Return the contents of metrics.json of each run, None for runs that are not complete."""
        found = [run.metrics(self.folder) for run in self.runs]
        return [m if m is not None and m["status"] == COMPLETE else None for m in found]


def add_metrics_to_complete_runs(plan: SweepPlan) -> None:
    """Add metrics of ``metrics.extra`` to metrics.json of complete runs that lack them, as a single run does."""
    for run, found in zip(plan.runs, plan.complete(), strict=True):
        if found is not None:
            folder = RunFolder(plan.folder / run.name, run.hash, run.cfg.checkpoints)
            _, added = add_new_metrics(folder, found, run.cfg.metrics.extra)
            if added:
                print(f"added to metrics.json of {run.name}: {', '.join(added)}", file=sys.stderr)


def refuse_other_data(plan: SweepPlan) -> None:
    """Raise OtherRun if the data has changed since a run of the sweep that is done. Each data set is opened once."""
    compared = set()
    for run in plan.runs:
        found = run.metrics(plan.folder) if run.is_done(plan.folder) else None
        if found is not None:
            options: Any = OmegaConf.to_container(run.cfg.data, resolve=True)
            if (data := str((options.get("source"), fingerprint_in(found)))) not in compared:
                compare_with_current_data(found, run.cfg, plan.folder / run.name)
                compared.add(data)


def announce(plan: SweepPlan) -> None:
    """Print the number of runs, their state, and the estimated cost of the remaining runs."""
    lines = [f"{len(plan.runs)} runs in {plan.folder}"]
    if (same := plan.combinations - len(plan.runs)) > 0:
        reason = "duplicates and were merged: their strategy ignores the varied option"
        lines[0] += f" ({same} of {plan.combinations} combinations are {reason})"
    to_do = plan.to_do
    started = sum(run.learned(plan.folder) > 0 for run in to_do)
    if started or len(to_do) < len(plan.runs):
        done = len(plan.runs) - len(to_do)
        lines.append(f"{done} are done, {started} will resume, {len(to_do) - started} are new")
    if others := count_other_runs(plan.folder, plan.runs):
        what = "1 run of another configuration" if others == 1 else f"{others} runs of other configurations"
        lines.append(f"the folder also contains {what}, left unchanged")
    print("\n".join(lines), file=sys.stderr)
    if len(to_do) >= MANY or (to_do and to_do[0].cfg.dry_run):
        print(estimate_cost(to_do), file=sys.stderr)


def raise_if_unfinished(plan: SweepPlan) -> None:
    """Raise SweepFailed if runs are not done, because they failed or never started."""
    missing = len(plan.to_do)
    if missing:
        raise SweepFailed(
            f"{missing} of {len(plan.runs)} runs are not done (see the table). Rerun the same command to complete them."
        )
