"""sweep.json: what was asked for in the folder of a sweep, so that what is missing can be told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from clbench.folder import atomically

if TYPE_CHECKING:
    from clbench.sweep.cells import Cell

FILE = "sweep.json"


def read_index(folder: Path) -> dict[str, Any]:
    """``commands``: what was typed, each once; ``cells``: overrides of each run by its name."""
    try:
        found = json.loads((folder / FILE).read_text())
        found["commands"], found["cells"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # there is none, or it is another program's
        return {"commands": [], "cells": {}}
    return dict(found)


def add_to_index(folder: Path, command: Sequence[str], cells: Sequence[Cell]) -> None:
    """The sweep ``command`` asks for ``cells``."""
    with FileLock(folder / f".{FILE}.lock"):  # other sweeps may begin in this folder
        index = read_index(folder)
        if list(command) not in index["commands"]:
            index["commands"].append(list(command))
        index["cells"] |= {cell.name: list(cell.overrides) for cell in cells}
        atomically(folder / FILE, partial(Path.write_text, data=json.dumps(index, indent=1) + "\n"))
