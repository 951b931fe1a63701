"""Log the progress of a sweep: a line for each run that ends, in any process, with the remaining time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from time import time

from clbench.config.os_errors import naming

FILE = "sweep.log"
LINE = re.compile(r"(begin|end) (\d+\.\d) (\S+ ?.*)")
"""A complete line. A full disk or a killed process may leave a part of one, which is ignored."""


def begin(folder: Path, runs: Mapping[str, str]) -> None:
    """Log that ``runs`` start: labels by the names of the run folders."""
    _append(folder, f"begin {time():.1f} {json.dumps(dict(runs))}")


def end(folder: Path, name: str, result: str) -> str:
    """Log that the run ``name`` ended with ``result``, and return the status line."""
    result = " ".join(result.split())  # the message of an error may have several lines
    _append(folder, f"end {time():.1f} {name} {result}")
    lines = _lines(folder)
    for k, (event, start, rest) in reversed(list(enumerate(lines))):  # several sweeps may run in one folder
        if event == "begin" and name in (runs := _labels(rest)):
            ended = _ended(lines[k:], runs)
            left = (time() - float(start)) / len(ended) * (len(runs) - len(ended))
            more = f", about {duration(left)} left" if len(ended) < len(runs) else ""
            return f"{runs[name]}: {result} ({len(ended)} of {len(runs)} done{more})"
    return f"{name}: {result}"


def latest(folder: Path) -> tuple[float, dict[str, str], dict[str, str]] | None:
    """Return when runs last started in ``folder``, their labels, and the results of those that have ended, by name of the run.

    None if no run has started.
    """
    lines = _lines(folder) if (folder / FILE).exists() else []
    for k, (event, start, rest) in reversed(list(enumerate(lines))):
        if event == "begin":
            labels = _labels(rest)
            return float(start), labels, _ended(lines[k:], labels)
    return None


def _lines(folder: Path) -> list[tuple[str, str, str]]:
    text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    found = (match.groups() for match in map(LINE.fullmatch, text.splitlines()) if match is not None)
    return [(event, moment, rest) for event, moment, rest in found]


def _ended(lines: Iterable[tuple[str, str, str]], runs: Mapping[str, str]) -> dict[str, str]:
    """Return the result of each of ``runs`` that has ended."""
    ends = (rest.partition(" ") for event, _, rest in lines if event == "end")
    return {name: result for name, _, result in ends if name in runs}


def _labels(text: str) -> dict[str, str]:
    try:
        labels = json.loads(text)
    except ValueError:
        return {}
    return labels if isinstance(labels, dict) else {}


def duration(seconds: float) -> str:
    """Return seconds as text: 8 s, 4 min, 2:05 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{str(timedelta(minutes=round(seconds / 60)))[:-3]} h"


def _append(folder: Path, line: str) -> None:
    """Append a line in a single write, so that lines of several processes do not mix."""
    with naming(folder / FILE):
        file = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)
