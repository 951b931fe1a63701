"""Show the progress of a sweep until all runs have ended, with any launcher: ``clbench report FOLDER --watch``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clbench.config.display import console, text_table
from clbench.errors import ConfigError
from clbench.metrics.quality import quality_of
from clbench.metrics.results import read_matrix
from clbench.runs.folder import learned, read_metrics
from clbench.runs.names import printable
from clbench.runs.sweep_log import FILE, duration, latest

EVERY = 2.0
"""Seconds between two looks at the files."""

MAX_SHOWN = 12
"""Largest number of runs in the table, those that ended or changed last."""


@dataclass(frozen=True)
class Progress:
    """Progress of a sweep.

    Attributes:
        total: Number of runs that the last command started, without those that it found finished.
        ended: Result of each run that has ended, by label, in the order of their ends.
        started: Tasks learned and seconds since the last change of files, of each run that has started and not ended.
        left: Estimated seconds until all have ended, None before the first end.
    """

    total: int
    ended: dict[str, str]
    started: dict[str, tuple[str, float]]
    left: float | None

    @property
    def failed(self) -> int:
        """Number of runs that failed."""
        return sum(result.startswith("failed") for result in self.ended.values())


def progress_of(folder: Path, now: float) -> Progress:
    """Return the progress of the last command that started runs in ``folder`` at the time ``now``.

    Raises:
        ConfigError: It is not the folder of a sweep.
    """
    begun = latest(folder)
    if begun is None:
        raise ConfigError(
            f"{folder}: expected the folder of a sweep, which has a {FILE} once its first runs start. Try the output_dir of the "
            "sweep."
        )
    start, labels, results = begun
    ended = {labels[name]: result for name, result in results.items()}
    started = {
        labels[name]: found
        for name in labels
        if name not in results and (found := _state(folder / name, now)) is not None
    }
    left = (now - start) / len(ended) * (len(labels) - len(ended)) if ended else None
    return Progress(len(labels), ended, started, left)


def _state(run: Path, now: float) -> tuple[str, float] | None:
    """Return the tasks learned by a run, as text, and the seconds since its last change, or None if it has not started."""
    files = [file for file in (run / "train.log", run / "metrics.json", run / "config.json") if file.exists()]
    if not files:
        return None
    try:
        metrics = read_metrics(run)
    except ConfigError:  # being written by an older version, or damaged
        metrics = None
    tasks = "" if metrics is None else f"{learned(metrics)} of {len(read_matrix(metrics, quality_of(metrics)))} tasks"
    return tasks, max(0.0, now - max(file.stat().st_mtime for file in files))


def table_of(progress: Progress) -> Group:
    """Return what the terminal shows."""
    counts = [f"{len(progress.ended)} of {progress.total} runs done", f"{len(progress.started)} started"]
    counts += [f"{progress.failed} failed"] if progress.failed else []
    if progress.left is not None and len(progress.ended) < progress.total:
        counts.append(f"about {duration(progress.left)} left")
    table: Table = text_table("run", "state", "last change")
    started = sorted(progress.started.items(), key=lambda item: item[1][1])[:MAX_SHOWN]
    for label, (tasks, seconds) in started:
        table.add_row(*map(Text, (printable(label), tasks or "started", f"{duration(seconds)} ago")))
    for label, result in list(progress.ended.items())[::-1][: max(0, MAX_SHOWN - len(started))]:
        table.add_row(*map(Text, (printable(label), printable(result), "")))
    return Group(Text(", ".join(counts)), table)


def watch(folder: Path, wait: Callable[[float], None] = sleep) -> None:
    """Show the progress of the sweep in ``folder`` until all runs have ended, or until Ctrl-C.

    Args:
        folder: Folder of a sweep.
        wait: Function that waits for a number of seconds.
    """
    progress = progress_of(folder, time())
    with Live(table_of(progress), console=console(), auto_refresh=False) as live:
        while len(progress.ended) < progress.total:
            wait(EVERY)
            progress = progress_of(folder, time())
            live.update(table_of(progress), refresh=True)
