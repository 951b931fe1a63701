"""Print the progress and results of a run to the terminal and to train.log."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from io import TextIOWrapper
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from clbench.config.os_errors import naming
from clbench.metrics.quality import quality_of

if TYPE_CHECKING:
    from clbench.metrics.metric import Metric

PIPE = 160  # columns of a table that is printed to a file or a pipe


class Display:
    """Printer of the plan, the values in R after each task and the summary.

    Args:
        log: File that receives the same text as the terminal.
        quiet: Whether to print to the file only (runs of a sweep, and processes other than the first).
    """

    def __init__(self, log: Path, quiet: bool = False) -> None:
        self.path = log
        self.terminal = _stdout(quiet=quiet, soft_wrap=True)
        self.log = Console(
            file=log.open("a", encoding="utf-8"), width=140, highlight=False, force_terminal=False, force_jupyter=False
        )

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
        """Print the values in R on the tasks so far in one line. If it is too narrow, the first and last ones are shown."""
        learned = row[: index + 1]
        width = max(len(_format(value)) for value in learned)
        text = Text(f"task {index + 1}/{tasks}  ", style="bold")
        end = f"  mean {sum(learned) / len(learned):.3f}  {seconds:.1f} s"
        places = first_and_last(index + 1, (self.terminal.width - len(text) - len(end) + 1) // (width + 1))
        shown = ("..." if j is None else _format(learned[j]) for j in places)
        text.append(" ".join(shown), style="none").append(end, style="dim")
        self._print(text)

    def summary(self, results: dict[str, Any], metrics: Mapping[str, Metric], folder: Path) -> None:
        """Print the matrix R and the metrics. Task numbers start at 1.

        If the terminal is too narrow for the matrix, the first and the last tasks are shown.

        Args:
            results: Contents of metrics.json.
            metrics: Metrics by name. Those with "run" in ``shown`` are printed.
            folder: The run's folder.
        """
        # imported late, because --help does not need them
        from clbench.metrics.registry import records_of
        from clbench.metrics.results import evaluated_data

        quality = quality_of(results)
        matrix = results[quality.key("accuracy_matrix")]
        title = (
            f"{evaluated_data(results)} {quality.label} (row: after training on a task, column: evaluated on a task)"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("after")
        width = max(len(_format(value)) for row in matrix for value in row)
        places = first_and_last(len(matrix), (self.terminal.width - 1) // (width + len("|  ")) - 1)
        for j in places:
            table.add_column("..." if j is None else str(j + 1), justify="right")
        for i in places:
            table.add_row("..." if i is None else str(i + 1), *(_cell(matrix, i, j) for j in places))
        self._print(table)
        grid = Table.grid(padding=(0, 2))
        for metric in records_of(quality, metrics).values():
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


def first_and_last(number: int, most: int) -> list[int | None]:
    """Return the indices of ``number`` items, or if there are more than ``most``, the first and last ones around None.

    >>> first_and_last(3, most=5), first_and_last(100, most=5)
    ([0, 1, 2], [0, 1, None, 98, 99])
    """
    half = max((most - 1) // 2, 1)
    return [*range(number)] if number <= most else [*range(half), None, *range(number - half, number)]


def _format(value: float) -> str:
    return "" if isnan(value) else f"{value:.3f}"


def _cell(matrix: list[list[float]], i: int | None, j: int | None) -> Text:
    """Return the cell of R, in bold for the task that was just trained."""
    if i is None or j is None:
        return Text("")
    return Text(_format(matrix[i][j]), style="bold" if i == j else "dim" if j > i else "")


def console() -> Console:
    """Return a console for tables: as wide as the terminal, or ``PIPE`` columns wide in a file or a pipe."""
    terminal = _stdout()
    return terminal if terminal.is_terminal else _stdout(width=PIPE)


def _stdout(**options: Any) -> Console:
    """Return a console on stdout, which escapes characters that the encoding of the terminal does not have."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(highlight=False, **options)


def text_table(*headings: str) -> Table:
    """Return a table for the console, in which no text is cut. A text that is wider than its column is folded."""
    return Table(*(Column(Text(heading), overflow="fold") for heading in headings))


def print_named_rows(names: Sequence[str], headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a named row per run. If it is wider than the terminal, the names follow below it, each in one line.

    Args:
        names: Names of the rows, which a user may copy.
        headings: Headings of the columns; the first one is that of the names.
        rows: Texts of the other columns.
    """
    terminal, table = console(), text_table(*headings)
    for name, row in zip(names, rows, strict=True):
        table.add_row(*map(Text, (name, *row)))  # Text, because rich would parse a value such as [a] as markup
    if terminal.measure(table, options=terminal.options.update(max_width=10_000)).maximum <= terminal.width:
        terminal.print(table)
        return
    table = text_table(*headings)
    for number, row in enumerate(rows, 1):
        table.add_row(*map(Text, (str(number), *row)))
    terminal.print(table)
    for number, name in enumerate(names, 1):
        terminal.print(Text(f"{number:>4} {name}"), soft_wrap=True)


@cache
def print_once(text: str) -> None:
    """Print ``text`` to stderr once per process, because all runs of a sweep report the same line."""
    print(text, file=sys.stderr, flush=True)
