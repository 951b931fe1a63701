"""What a sweep has to do, and what it says before it begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clbench.errors import SweepFailed
from clbench.runs.folder import FINISHED
from clbench.sweep.estimate import cost
from clbench.sweep.grid import Cell, Compose, different, others

MANY = 8  # runs, from which on it is worth a few seconds to say how long they take


@dataclass(frozen=True)
class Work:
    """The cells of a sweep and what of them is done.

    Args:
        cells: the runs, all different.
        asked: how many cells were asked for, equal ones counted each.
        folder: of the sweep.
    """

    cells: list[Cell]
    asked: int
    folder: Path

    @classmethod
    def of(cls, grid: Sequence[Sequence[str]], compose: Compose, folder: Path) -> Work:
        """The work for the overrides in ``grid``."""
        return cls(different(grid, compose), len(grid), folder)

    def only(self, cells: list[Cell]) -> Work:
        """The work for some of them."""
        return replace(self, cells=cells, asked=len(cells))

    @property
    def to_do(self) -> list[Cell]:
        """What is not done."""
        return [cell for cell in self.cells if not cell.done(self.folder)]

    def complete(self) -> list[dict[str, Any] | None]:
        """metrics.json of each cell that has learned all its tasks by now."""
        found = [cell.metrics(self.folder) for cell in self.cells]
        return [m if m is not None and m["status"] == FINISHED else None for m in found]


def before(work: Work) -> None:
    """Say how many runs there are, what of them is done, and what the rest will take."""
    lines = [f"{len(work.cells)} runs in {work.folder}"]
    if (same := work.asked - len(work.cells)) > 0:
        lines[0] += f" ({same} of {work.asked} cells differ only in options their strategy does not have, and run once)"
    to_do = work.to_do
    begun = sum(cell.learned(work.folder) > 0 for cell in to_do)
    if begun or len(to_do) < len(work.cells):
        done = len(work.cells) - len(to_do)
        lines.append(
            f"{done} are done and not run again, {begun} go on where they stopped, {len(to_do) - begun} are new"
        )
    if foreign := others(work.folder, work.cells):
        what = "run of another configuration lies" if foreign == 1 else "runs of other configurations lie"
        lines.append(f"{foreign} {what} there too, left alone")
    print("\n".join(lines), file=sys.stderr)
    if len(to_do) >= MANY or (to_do and to_do[0].cfg.dry_run):
        print(cost(to_do), file=sys.stderr)


def failed(work: Work) -> None:
    """Raise SweepFailed if runs are not done, because they failed or because they never began."""
    missing = len(work.to_do)
    if missing:
        raise SweepFailed(
            f"{missing} of {len(work.cells)} runs are not done, see the table; the others are, and the same command runs what is "
            "missing"
        )
