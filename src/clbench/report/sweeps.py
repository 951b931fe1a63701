"""What was asked for: the commands behind the runs, and the cells of a sweep that are not there."""

from __future__ import annotations

import shlex
from collections import defaultdict
from pathlib import Path

from pandas import DataFrame

from clbench.runs.sweep_index import read_index


def commands(runs: DataFrame) -> list[tuple[str, int]]:
    """The commands that made the runs, each with how many; those of a sweep are one entry."""
    sweeps = {
        folder: "\n".join(shlex.join(["python", "-m", "clbench.train", "-m", *typed]) for typed in index["commands"])
        for folder in _sweeps(runs)
        if (index := read_index(Path(folder)))["commands"]
    }
    counted: dict[str, int] = defaultdict(int)
    for folder, overrides in zip(runs.folder, runs.overrides, strict=True):
        alone = shlex.join(["python", "-m", "clbench.train", *overrides])
        counted[sweeps.get(str(Path(folder).parent), alone if overrides else "(not known)")] += 1
    return list(counted.items())


def never_run(runs: DataFrame) -> list[tuple[str, str]]:
    """Cells that a sweep asked for and that have no folder: (folder of the sweep, overrides)."""
    absent = []
    for folder in _sweeps(runs):
        cells: dict[str, list[str]] = read_index(Path(folder))["cells"]
        same = set.intersection(*map(set, cells.values())) if len(cells) > 1 else set()
        for name, overrides in cells.items():
            if not (Path(folder) / name).is_dir():
                absent.append((folder, " ".join(o for o in overrides if o not in same)))
    return absent


def _sweeps(runs: DataFrame) -> list[str]:
    """The folders that the runs lie in, in the order of the runs."""
    return list(dict.fromkeys(str(Path(folder).parent) for folder in runs.folder))
