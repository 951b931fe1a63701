"""sweep.json: what was asked for in the folder of a sweep, so that what is missing can be told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from clbench.runs.folder import atomically

FILE = "sweep.json"


def read_index(folder: Path) -> dict[str, Any]:
    """``commands``: what was typed, each once; ``runs``: overrides of each run by its name."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        found["commands"], found["runs"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # there is none, or it is another program's
        return {"commands": [], "runs": {}}
    return dict(found)


def add_to_index(folder: Path, command: Sequence[str], runs: Mapping[str, Sequence[str]]) -> None:
    """Record that the sweep ``command`` asks for ``runs``, the overrides of each by its name."""
    with FileLock(folder / f".{FILE}.lock"):  # other sweeps may begin in this folder
        index = read_index(folder)
        if list(command) not in index["commands"]:
            index["commands"].append(list(command))
        index["runs"] |= {name: list(overrides) for name, overrides in runs.items()}
        atomically(folder / FILE, partial(Path.write_text, data=json.dumps(index, indent=1) + "\n", encoding="utf-8"))
