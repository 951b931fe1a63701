"""Read and write sweep.json, the list of all runs of a sweep, from which missing runs can be identified."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from clbench.errors import ConfigError
from clbench.runs.folder import atomically
from clbench.runs.json_files import COUNT, TEXT, Shape, read_json

FILE = "sweep.json"

SHAPE: Shape = {"commands": [[TEXT]], "runs": {"*": [TEXT]}, "not_selected?": {"*": COUNT}}
"""Shape of sweep.json."""


def read_index(folder: Path) -> dict[str, Any]:
    """Return ``commands``, the distinct commands of the sweep, and by name of the runs: ``runs``, the overrides, and
    ``not_selected``, the number of tasks after which the lam of another run was selected.
    """
    empty: dict[str, Any] = {"commands": [], "runs": {}, "not_selected": {}}
    try:
        return empty | dict(read_json(folder / FILE, SHAPE))
    except (FileNotFoundError, ConfigError):  # missing, or written by another program
        return empty


def add_to_index(folder: Path, command: Sequence[str], runs: Mapping[str, Sequence[str]]) -> None:
    """Add the sweep ``command`` and the overrides of its ``runs`` by name."""
    with _changing(folder) as index:
        if list(command) not in index["commands"]:
            index["commands"].append(list(command))
        index["runs"] |= {name: list(overrides) for name, overrides in runs.items()}


def add_selection(folder: Path, names: Iterable[str], rejected: Iterable[str], tasks: int) -> None:
    """Add that of the runs ``names`` those in ``rejected`` were not selected after ``tasks`` tasks."""
    with _changing(folder) as index:
        kept = {name: number for name, number in index["not_selected"].items() if name not in set(names)}
        index["not_selected"] = kept | dict.fromkeys(rejected, tasks)


@contextmanager
def _changing(folder: Path) -> Iterator[dict[str, Any]]:
    with FileLock(folder / f".{FILE}.lock"):  # another sweep may start in this folder
        index = read_index(folder)
        yield index
        atomically(folder / FILE, partial(Path.write_text, data=json.dumps(index, indent=1) + "\n", encoding="utf-8"))
