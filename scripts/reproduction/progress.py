"""Show the number of finished runs and the time left: a progress bar in a terminal, otherwise a line per run."""

from __future__ import annotations

from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar


class Progress:
    """Progress of the runs: ``with Progress(10, done=3) as progress: progress.step("row seed=0")``.

    Args:
        total: Number of all runs.
        done: Number of runs that were already finished. They do not count for the time left.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.total, self.done, self.before = total, done, done
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.line = self.bar.add_task("runs", total=total, completed=done, left="")

    def __enter__(self) -> Progress:
        self.began = perf_counter()
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def step(self, what: str) -> None:
        """Report that one run has ended."""
        self.done += 1
        left = time_left(self.total - self.done, self.done - self.before, perf_counter() - self.began)
        self.console.print(f"{self.done}/{self.total}  {what}  {left} left")
        self.bar.update(self.line, completed=self.done, left=f"{left} left")


def time_left(remaining: int, done: int, seconds: float) -> str:
    """Return the time of ``remaining`` runs at the pace of the ``done`` ones, as text."""
    return duration(remaining * seconds / done)


def duration(seconds: float) -> str:
    """Format seconds: 3725 is 1 h 02 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
