"""Provenance of runs: commands, package versions, and runs that a sweep requested but that do not exist."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from pathlib import Path

from pandas import DataFrame

from clbench.runs.sweep_index import read_index


def count_commands(runs: DataFrame) -> dict[str, int]:
    """Return the commands that started the runs with their numbers of runs. The commands of a sweep are one entry."""
    sweeps = {
        folder: "\n".join(shlex.join(["python", "-m", "clbench.train", "-m", *typed]) for typed in index["commands"])
        for folder in _parent_folders(runs)
        if (index := read_index(Path(folder)))["commands"]
    }
    counts: dict[str, int] = defaultdict(int)
    for folder, overrides in zip(runs.folder, runs.overrides, strict=True):
        single = shlex.join(["python", "-m", "clbench.train", *overrides])
        counts[sweeps.get(str(Path(folder).parent), single if overrides else "(unknown)")] += 1
    return dict(counts)


def count_versions(runs: DataFrame) -> dict[str, Counter[str]]:
    """Return the versions of each package with their numbers of runs."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for versions in runs.versions.dropna():
        for package, version in versions.items():
            counts[package][version] += 1
    return dict(counts)


def find_missing_runs(runs: DataFrame) -> list[tuple[str, str]]:
    """Return (sweep folder, overrides) of each run that a sweep requested and that has no folder."""
    missing = []
    for folder in _parent_folders(runs):
        requested: dict[str, list[str]] = read_index(Path(folder))["runs"]
        common = set.intersection(*map(set, requested.values())) if len(requested) > 1 else set()
        for name, overrides in requested.items():
            if not (Path(folder) / name).is_dir():
                missing.append((folder, " ".join(o for o in overrides if o not in common)))
    return missing


def _parent_folders(runs: DataFrame) -> list[str]:
    """Return the parent folders of the runs, in the order of the runs."""
    return list(dict.fromkeys(str(Path(folder).parent) for folder in runs.folder))
