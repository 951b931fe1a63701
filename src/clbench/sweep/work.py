"""What a sweep has to do, and what it says before it begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clbench.errors import ConfigError
from clbench.sweep.cells import Cell, Compose, different, others
from clbench.sweep.estimate import estimates
from clbench.sweep.progress import duration

MANY = 8  # runs, from which on it is worth a few seconds to say how long they take


class SweepFailed(ConfigError):
    """Some runs of a sweep failed; the others are done."""


@dataclass(frozen=True)
class Work:
    """The cells of a sweep and what of them is done.

    Args:
        cells: the runs, all different.
        asked: how many cells were asked for, equal ones counted each.
        folder: of the sweep.
        status: of each cell: None, or that of its metrics.json.
    """

    cells: list[Cell]
    asked: int
    folder: Path
    status: list[str | None]

    @classmethod
    def of(cls, grid: Sequence[Sequence[str]], compose: Compose, folder: Path) -> Work:
        """The work for the overrides in ``grid``."""
        cells = different(grid, compose)
        found = [cell.metrics(folder) for cell in cells]
        return cls(cells, len(grid), folder, [None if m is None else m["status"] for m in found])

    @property
    def to_do(self) -> list[Cell]:
        """What is not complete."""
        return [cell for cell, status in zip(self.cells, self.status, strict=True) if status != "complete"]

    def complete(self) -> list[dict[str, Any] | None]:
        """metrics.json of each cell that is complete by now."""
        found = [cell.metrics(self.folder) for cell in self.cells]
        return [m if m is not None and m["status"] == "complete" else None for m in found]


def before(work: Work) -> None:
    """Say how many runs there are, what of them is done, and what the rest will take."""
    lines = [f"{len(work.cells)} runs in {work.folder}"]
    if (same := work.asked - len(work.cells)) > 0:
        lines[0] += f" ({same} of {work.asked} cells differ only in options their strategy does not have, and run once)"
    done, begun = work.status.count("complete"), sum(s not in (None, "complete") for s in work.status)
    if done or begun:
        lines.append(
            f"{done} are done and not run again, {begun} go on where they stopped, {len(work.to_do) - begun} are new"
        )
    if foreign := others(work.folder, work.cells):
        lines.append(f"{foreign} runs of other configurations lie there too and are left alone")
    print("\n".join(lines), file=sys.stderr)
    if len(work.to_do) >= MANY or (work.to_do and work.to_do[0].cfg.dry_run):
        print(_cost(work.to_do), file=sys.stderr)


def _cost(cells: Sequence[Cell]) -> str:
    each = estimates(cells)
    seconds, size = sum(e.seconds for e in each), sum(e.bytes for e in each)
    return f"about {duration(seconds)} of one process at a time, {size / 1e6:,.0f} MB of checkpoints"
