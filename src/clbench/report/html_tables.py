"""Tables of the page as plain data, rendered by the template ``tables.html``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pandas import DataFrame

from clbench.metrics.metric import Metric
from clbench.metrics.registry import BUILT_IN
from clbench.report.columns import Metrics, filled_metrics, find_best_setups, format_mean, quality_of_rows
from clbench.report.style import VARIABLES
from clbench.report.summary import is_reference
from clbench.runs.names import format_value


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: Number or name.
        sort: Value for sorting, by default ``text``. "" sorts last.
        half: Half-width of an interval, shown after ``text``.
        options: Options of a strategy, shown in small type after ``text``.
        is_bold: Whether ``text`` is bold.
        is_reference: Whether the cell is marked as a reference.
        colour: CSS variable of the strategy's colour.
    """

    text: str
    sort: str | None = None
    half: str = ""
    options: str = ""
    is_bold: bool = False
    is_reference: bool = False
    colour: str = ""


class Heading(NamedTuple):
    """A heading of a column.

    Attributes:
        text: Heading.
        meaning: Explanation, shown when the pointer is on the heading.
        is_text: Whether the column is text.
        is_ascending: Whether the first click sorts in ascending order.
        is_extra: Whether the column is hidden until the reader asks for all columns.
    """

    text: str
    meaning: str = ""
    is_text: bool = False
    is_ascending: bool = True
    is_extra: bool = False


class Row(NamedTuple):
    """Cells of a row, and its CSS class."""

    cells: Sequence[Cell]
    css: str = ""


class Table(NamedTuple):
    """A table with its CSS classes. ``sort`` turns headings into buttons, ``pin`` keeps the first column visible."""

    headings: Sequence[Heading]
    rows: Sequence[Row]
    css: str = "sort pin wide"

    @property
    def has_extra(self) -> bool:
        """Whether some columns are hidden at first."""
        return any(heading.is_extra for heading in self.headings)

    @property
    def is_sortable(self) -> bool:
        """Whether a click on a heading sorts the table."""
        return "sort" in self.css.split()


AVERAGE = BUILT_IN["average_accuracy"]
EMPTY = Cell("", sort="")


def strategies_table(rows: DataFrame, metrics: Metrics, chance: float, colours: Mapping[str, str]) -> Table:
    """Return the selected rows and, if ``chance`` is defined, a row for guessing. The best mean of each metric is bold."""
    columns, has_lam = filled_metrics(rows, metrics.values()), rows.lam.notna().any()
    best = find_best_setups(rows, columns)
    lam = [Heading("lam")] if has_lam else []
    table_rows = [
        Row(
            [
                _strategy_cell(row, colours),
                *([_lam_cell(row.lam)] if has_lam else []),
                Cell(str(row.seeds)),
                *(_metric_cell(row, metric, row.setup in best.get(metric.name, ())) for metric in columns),
            ],
            "reference" if is_reference(row.strategy) else "",
        )
        for row in rows.itertuples()
    ]
    if not math.isnan(chance):
        accuracy = Cell(AVERAGE.text(chance), sort_value(chance))
        guesses = [accuracy if metric.name == AVERAGE.name else EMPTY for metric in columns]
        table_rows.append(Row([Cell("chance"), *([EMPTY] if has_lam else []), EMPTY, *guesses], "reference"))
    headings = [Heading("strategy", is_text=True), *lam, Heading("seeds"), *_metric_headings(columns)]
    return Table(headings, table_rows)


def setups_table(setups: DataFrame, metrics: Metrics, colours: Mapping[str, str]) -> Table:
    """Return all setups. Those with the selected lam are highlighted."""
    columns = filled_metrics(setups, metrics.values())
    headings = [Heading("strategy", is_text=True), Heading("lam"), Heading("seeds"), *_metric_headings(columns)]
    rows = [
        Row(
            [
                _strategy_cell(row, colours),
                _lam_cell(row.lam),
                Cell(str(row.seeds)),
                *(_metric_cell(row, metric) for metric in columns),
            ],
            "picked" if row.selected and row.lam_count > 1 else "",
        )
        for row in setups.itertuples()
    ]
    return Table(headings, rows)


def lam_table(setups: DataFrame) -> Table:
    """Return, for each method, the lam selected on validation data and that of the test oracle, with test values."""
    quality = quality_of_rows(setups)
    headings = [
        Heading("method", is_text=True),
        Heading("lam selected on validation"),
        Heading(f"its test {quality.label}"),
        Heading("lam, test oracle"),
        Heading(f"its test {quality.label} (oracle)"),
        Heading(
            "oracle - selected" if quality.higher_is_better else "selected - oracle",
            f"test {quality.label} gained by selecting on test data",
        ),
    ]
    rows = []
    for method, lams in setups[setups.lam_count > 1].groupby("method"):
        competing = lams[lams.seeds == lams.seeds.max()]
        oracle = competing.loc[(quality.sign * competing.average_accuracy).idxmax()]
        if competing.validation_average_accuracy.notna().any():
            selected = competing.loc[(quality.sign * competing.validation_average_accuracy).idxmax()]
            gap = quality.sign * (oracle.average_accuracy - selected.average_accuracy)
            on_validation = [_lam_cell(selected.lam), _metric_cell(selected, AVERAGE)]
            difference = Cell(AVERAGE.text(gap), sort_value(gap))
        else:
            on_validation, difference = [Cell("no validation data", sort=""), EMPTY], EMPTY
        on_test = [_lam_cell(oracle.lam), _metric_cell(oracle, AVERAGE)]
        rows.append(Row([Cell(str(method)), *on_validation, *on_test, difference]))
    return Table(headings, rows)


def differences_table(differences: DataFrame, metrics: Metrics) -> Table:
    """Return the paired differences. Those whose interval excludes 0 are bold."""
    average = metrics[AVERAGE.name]
    headings = [
        Heading("a", is_text=True),
        Heading("b", is_text=True),
        Heading("seeds"),
        Heading(f"{average.heading}, a - b", is_ascending=not average.higher_is_better),
        Heading("p"),
        Heading(f"{metrics['forgetting'].heading}, a - b"),
        Heading("p"),
    ]
    rows = []
    for row in differences.itertuples():
        cells = [Cell(row.a), Cell(row.b), Cell(str(row.seeds))]
        for metric in ("average_accuracy", "forgetting"):
            mean, half, p = (getattr(row, f"{metric}{end}") for end in ("", "_ci", "_p"))
            cells += [_difference_cell(mean, half), _p_cell(p)]
        rows.append(Row(cells))
    return Table(headings, rows)


def sort_value(value: float) -> str:
    """Format a number for sorting, or "" for nan."""
    return "" if math.isnan(value) else f"{value:.10g}"


def _metric_headings(columns: Sequence[Metric]) -> list[Heading]:
    return [
        Heading(
            metric.heading,
            metric.definition,
            is_ascending=not metric.higher_is_better,
            is_extra=not {"terminal", "tex"} & set(metric.shown),
        )
        for metric in columns
    ]


def _strategy_cell(row: Any, colours: Mapping[str, str]) -> Cell:
    return Cell(
        row.strategy,
        options=row.method.removeprefix(row.strategy).strip(),
        is_reference=is_reference(row.strategy),
        colour=VARIABLES[colours[row.strategy]],
    )


def _lam_cell(lam: float) -> Cell:
    return Cell("-" if math.isnan(lam) else format_value(float(lam)), sort_value(lam))


def _metric_cell(row: Any, metric: Metric, is_bold: bool = False) -> Cell:
    mean, half = format_mean(row, metric)
    return Cell(mean, sort_value(getattr(row, metric.name)), half, is_bold=is_bold)


def _difference_cell(mean: float, half: float) -> Cell:
    if math.isnan(mean):
        return EMPTY
    return Cell(f"{mean:+.3f}", sort_value(mean), f"{half:.3f}", is_bold=abs(mean) > half)


def _p_cell(p: float) -> Cell:
    return EMPTY if math.isnan(p) else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", sort_value(p))
