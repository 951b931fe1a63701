"""Refuse folders in which a run and a sweep, or two runs, would be mixed, because readers would then find only one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from clbench.errors import ConfigError
from clbench.metrics.quality import QUALITIES
from clbench.runs.sweep_index import FILE as SWEEP

DEPTH = 3
"""Levels of folders below a new run folder in which runs are looked for: ``outputs/sweeps/SWEEP/RUN``."""


def check_new_run(folder: Path, sweep: Path | None) -> None:
    """Raise ConfigError if ``folder`` is that of a sweep, contains other runs, or is inside the folder of a run.

    Args:
        folder: Absolute path of the run folder. It may already contain this run.
        sweep: Folder of the sweep of the run, None for a single run.
    """
    _check_parents(folder, f"output_dir={sweep or folder}")
    if folder != sweep and (folder / SWEEP).is_file():
        raise ConfigError(
            f"output_dir={folder}: expected a folder for one run, found a sweep. Add -m to continue the sweep, or try another "
            "folder."
        )
    if not is_run(folder) and (other := next(_runs_below(folder, DEPTH), None)) is not None:
        raise ConfigError(
            f"output_dir={folder}: expected a folder for one run, found a run in {other.relative_to(folder)}/. Add -m for a "
            "sweep, or try another folder."
        )


def check_sweep(folder: Path) -> None:
    """Raise ConfigError if the ``folder`` of a sweep is that of a run, or inside the folder of a run."""
    if is_run(folder):
        raise ConfigError(
            f"output_dir={folder}: expected a folder for a sweep, found a run. Remove -m to continue the run, or try "
            "another folder."
        )
    _check_parents(folder, f"output_dir={folder}")


def is_run(folder: Path) -> bool:
    """Return whether the folder contains the files of a run of clbench."""
    matrices = {quality.key("accuracy_matrix") for quality in QUALITIES.values()}
    return _has_key(folder / "config.json", {"config_hash"}) or _has_key(folder / "metrics.json", matrices)


def _check_parents(folder: Path, option: str) -> None:
    for parent in Path(os.path.realpath(folder)).parents:
        if is_run(parent):
            raise ConfigError(
                f"{option}: expected a folder that is not inside a run, but {parent} is the folder of a run. Try another folder."
            )


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the run folders in ``folder``, down to ``depth`` levels."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:  # missing or not readable
        return
    for path in (folder / name for name in inside):
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _runs_below(path, depth - 1)


def _has_key(file: Path, keys: set[str]) -> bool:
    """Return whether a JSON file has one of the keys."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else None  # reading a pipe would block
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and not keys.isdisjoint(content)
