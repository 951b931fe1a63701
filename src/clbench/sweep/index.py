"""sweep.json: what was asked for in the folder of a sweep, so that what is missing can be told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clbench.folder import atomically
from clbench.sweep.cells import Cell

FILE = "sweep.json"


def read_index(folder: Path) -> dict[str, Any]:
    """``commands``: what was typed, each once; ``cells``: overrides of each run by its name."""
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {"commands": [], "cells": {}}
    return found


def add_to_index(folder: Path, command: Sequence[str], cells: Sequence[Cell]) -> None:
    """The sweep ``command`` asks for ``cells``."""
    index = read_index(folder)
    if list(command) not in index["commands"]:
        index["commands"].append(list(command))
    index["cells"] |= {cell.name: list(cell.overrides) for cell in cells}
    atomically(folder / FILE, partial(Path.write_text, data=json.dumps(index, indent=1) + "\n"))
