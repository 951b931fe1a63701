"""Progress of a sweep: a line per run that ends, from whichever process it ran in, with the time that is left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from time import time

FILE = "sweep.log"


def begin(folder: Path, runs: Mapping[str, str]) -> None:
    """``runs`` are about to start: what to call each, by the name of its folder."""
    _append(folder, f"begin {time():.1f} {json.dumps(dict(runs))}")


def end(folder: Path, name: str, said: str) -> str:
    """The run ``name`` has ended, with the result ``said``; gives the line to show."""
    _append(folder, f"end {time():.1f} {name} {said}")
    lines = (folder / FILE).read_text().splitlines()
    start = max((k for k, line in enumerate(lines) if line.startswith("begin ")), default=None)
    if start is None:
        return f"{name}: {said}"
    _, began, text = lines[start].split(maxsplit=2)
    runs = json.loads(text)
    done = len(lines) - start - 1
    left = (time() - float(began)) / done * (len(runs) - done)
    rest = f", about {duration(left)} left" if done < len(runs) else ""
    return f"{runs.get(name, name)}: {said} ({done} of {len(runs)} done{rest})"


def duration(seconds: float) -> str:
    """As a person says it: 8 s, 4 min, 2:05 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{str(timedelta(minutes=round(seconds / 60)))[:-3]} h"


def _append(folder: Path, line: str) -> None:
    """In one write, so that lines of several processes do not mix."""
    file = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)
