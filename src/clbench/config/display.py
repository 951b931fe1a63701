"""Print the progress and results of a run to the terminal and to train.log."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clbench.config.os_errors import naming

if TYPE_CHECKING:
    from clbench.metrics.metric import Metric

PIPE = 160  # columns of a table that is printed to a file or a pipe


class Display:
    """Printer of the plan, the accuracies after each task and the summary.

    Args:
        log: File that receives the same text as the terminal.
        quiet: Whether to print to the file only (runs of a sweep, and processes other than the first).
    """

    def __init__(self, log: Path, quiet: bool = False) -> None:
        self.path = log
        self.terminal = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.log = Console(file=log.open("a", encoding="utf-8"), width=140, highlight=False, force_jupyter=False)

    def plan(self, lines: dict[str, str]) -> None:
        """Print the parts of a run, one per line, before it starts."""
        grid = Table.grid(padding=(0, 2))
        for label, text in lines.items():
            grid.add_row(Text(label, style="dim"), text)
        self._print(grid)

    def note(self, text: str) -> None:
        """Print a line."""
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print(Text("warning: ", style="bold yellow").append(text, style="none"))

    def after_task(self, index: int, tasks: int, row: list[float], seconds: float) -> None:
        """Print the accuracies on the tasks so far, in one line."""
        learned = row[: index + 1]
        text = Text(f"task {index + 1}/{tasks}  ", style="bold")
        text.append(" ".join(f"{accuracy:.3f}" for accuracy in learned), style="none")
        text.append(f"  mean {sum(learned) / len(learned):.3f}  {seconds:.1f} s", style="dim")
        self._print(text)

    def summary(self, results: dict[str, Any], metrics: Mapping[str, Metric], folder: Path) -> None:
        """Print the accuracy matrix and the metrics. Task numbers start at 1.

        Args:
            results: Contents of metrics.json.
            metrics: Metrics by name. Those with "run" in ``shown`` are printed.
            folder: The run's folder.
        """
        matrix = results["accuracy_matrix"]
        table = Table(
            title="test accuracy (row: after training on a task, column: evaluated on a task)", title_justify="left"
        )
        table.add_column("after")
        for j in range(1, len(matrix) + 1):
            table.add_column(str(j), justify="right")
        for i, row in enumerate(matrix):
            cells = [Text(f"{a:.3f}", style="bold" if i == j else "dim" if j > i else "") for j, a in enumerate(row)]
            table.add_row(str(i + 1), *cells)
        self._print(table)
        grid = Table.grid(padding=(0, 2))
        for metric in metrics.values():
            if "run" in metric.shown and not isnan(value := metric.read_from(results)):
                grid.add_row(Text(metric.heading, style="dim"), metric.text(value))
        seconds = results["seconds"]
        parts = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("train", "importance", "evaluation"))
        grid.add_row(Text("seconds", style="dim"), f"{seconds['total']:.1f} ({parts})")
        self._print(grid)
        self._print(Text("results in ", style="dim").append(str(folder), style="none"))

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        with naming(self.path):
            self.log.file.close()

    def _print(self, content: Any) -> None:
        self.terminal.print(content)
        with naming(self.path):
            self.log.print(content)


def console() -> Console:
    """Return a console for tables: as wide as the terminal, or ``PIPE`` columns wide in a file or a pipe."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PIPE)


@cache
def print_once(text: str) -> None:
    """Print ``text`` to stderr once per process, because all runs of a sweep report the same line."""
    print(text, file=sys.stderr, flush=True)
