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
    said = " ".join(said.split())  # one line, whatever an error says
    _append(folder, f"end {time():.1f} {name} {said}")
    lines = [line.split(maxsplit=3) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]
    for k, (what, began, *rest) in reversed(list(enumerate(lines))):  # several sweeps may run in one folder
        if what == "begin" and name in (runs := json.loads(" ".join(rest))):
            ended = {line[2] for line in lines[k:] if line[0] == "end"} & runs.keys()
            left = (time() - float(began)) / len(ended) * (len(runs) - len(ended))
            more = f", about {duration(left)} left" if len(ended) < len(runs) else ""
            return f"{runs[name]}: {said} ({len(ended)} of {len(runs)} done{more})"
    return f"{name}: {said}"


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
