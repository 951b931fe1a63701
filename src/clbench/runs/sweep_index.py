"""Read and write sweep.json, the list of all runs of a sweep, from which missing runs can be identified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from clbench.errors import ConfigError
from clbench.runs.folder import atomically
from clbench.runs.json_files import TEXT, Shape, read_json

FILE = "sweep.json"

SHAPE: Shape = {"commands": [[TEXT]], "runs": {"*": [TEXT]}}
"""Shape of sweep.json."""


def read_index(folder: Path) -> dict[str, Any]:
    """Return ``commands``, the distinct commands of the sweep, and ``runs``, the overrides of each run by name."""
    try:
        return dict(read_json(folder / FILE, SHAPE))
    except (FileNotFoundError, ConfigError):  # missing, or written by another program
        return {"commands": [], "runs": {}}


def add_to_index(folder: Path, command: Sequence[str], runs: Mapping[str, Sequence[str]]) -> None:
    """Add the sweep ``command`` and the overrides of its ``runs`` by name."""
    with FileLock(folder / f".{FILE}.lock"):  # another sweep may start in this folder
        index = read_index(folder)
        if list(command) not in index["commands"]:
            index["commands"].append(list(command))
        index["runs"] |= {name: list(overrides) for name, overrides in runs.items()}
        atomically(folder / FILE, partial(Path.write_text, data=json.dumps(index, indent=1) + "\n", encoding="utf-8"))
