"""Tables over seeds in CSV, LaTeX and the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pandas import DataFrame, concat
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from clbench.metrics.metric import Metric
from clbench.metrics.quality import QUALITIES, Quality
from clbench.metrics.registry import records_of
from clbench.report.columns import Metrics, filled_metrics, find_best_setups, format_mean, quality_of_rows
from clbench.report.output import write_text

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters of a text that spreadsheets execute as a formula."""


def write_csv(setups: DataFrame, metrics: Metrics, path: Path) -> None:
    """Write all setups in full precision. ``M`` is the mean over seeds, ``M_ci`` the half-width of its 95 % interval.

    The columns have the keys of metrics.json. With several qualities, those of the other qualities are empty.
    A text that a spreadsheet would execute as a formula begins with a single quote.
    """
    columns = ["benchmark", "method", "strategy", "lam", "fisher", "samples", "seeds", "selected", "oracle", "quality"]
    tables, numbers = [], dict[str, dict[str, None]]()
    for quality, of_quality in setups.groupby("quality"):
        names = _number_columns(metrics.values(), QUALITIES[quality])
        tables.append(of_quality.rename(columns=names))
        numbers |= {name: dict.fromkeys([*numbers.get(name, ()), key]) for name, key in names.items()}
    table = concat(tables).sort_index()[[*columns, *(key for keys in numbers.values() for key in keys)]]
    write_text(path, table.map(guard_formula).to_csv(index=False, lineterminator="\n"))


def _number_columns(metrics: Iterable[Metric], quality: Quality) -> dict[str, str]:
    """Return the names of the columns of numbers in a file: by the keys of ``quality``."""
    return {f"{metric.name}{end}": f"{metric.key(quality)}{end}" for metric in metrics for end in ("", "_ci")}


def guard_formula(value: Any) -> Any:
    """Return the value of a cell, with a single quote before a text that a spreadsheet would execute.

    >>> guard_formula("=1+1"), guard_formula("ewc"), guard_formula(-0.5)
    ("'=1+1", 'ewc', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_tex(rows: DataFrame, metrics: Metrics, select: str, path: Path) -> None:
    """Write the selected rows as one booktabs table per benchmark, for ``input`` in a LaTeX document."""
    tables = ["% requires \\usepackage{booktabs}; a caption is above each table"]
    tables += [
        _tex_table(str(name), of_benchmark, metrics, select)
        for name, of_benchmark in rows.groupby("benchmark", sort=False)
    ]
    write_text(path, "\n\n".join(tables) + "\n")


def _tex_table(benchmark: str, rows: DataFrame, metrics: Metrics, select: str) -> str:
    records = records_of(quality_of_rows(rows), metrics)
    columns = [metric for metric in filled_metrics(rows, records.values()) if "tex" in metric.shown]
    best = find_best_setups(rows, columns)
    lines = [
        f"% {benchmark}",
        f"% {caption(rows, select)}",
        f"\\begin{{tabular}}{{lr{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["strategy", "seeds", *(escape_tex(metric.heading) for metric in columns)]) + r" \\",
        "\\midrule",
    ]
    for row in rows.itertuples():
        numbers = []
        for metric in columns:
            mean, half = (text.replace(",", "{,}").replace("%", r"\%") for text in format_mean(row, metric))
            if row.setup in best.get(metric.name, ()):
                mean = f"\\mathbf{{{mean}}}"
            numbers.append(f"${mean} \\pm {half}$" if half else f"${mean}$" if mean else "--")
        lines.append(" & ".join([escape_tex(row.setup), str(row.seeds), *numbers]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def caption(rows: DataFrame, select: str) -> str:
    """Return the sentences of a caption: what the numbers are, of how many seeds, and how lam was selected."""
    seeds = sorted({int(number) for number in rows.seeds})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    noun = "seed" if seeds == [1] else "seeds"
    text = f"Mean and half-width of the 95 % Student t interval over {number} {noun}. Best values bold."
    if rows[rows.lam_count > 1].selected.any():
        text += f" The strength of each penalty was selected by the average over all tasks on {select} data."
    return text


def escape_tex(text: str) -> str:
    r"""Escape text for LaTeX.

    >>> print(escape_tex("average_accuracy"))
    average\_accuracy
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "_%&#${}" else c) for c in text)


def terminal_tables(rows: DataFrame, metrics: Metrics) -> list[Table]:
    """Return one table per benchmark."""
    return [
        _terminal_table(str(name), of_benchmark, metrics)
        for name, of_benchmark in rows.groupby("benchmark", sort=False)
    ]


def _terminal_table(benchmark: str, rows: DataFrame, metrics: Metrics) -> Table:
    records = records_of(quality_of_rows(rows), metrics)
    columns = [metric for metric in filled_metrics(rows, records.values()) if "terminal" in metric.shown]
    best = find_best_setups(rows, columns)
    table = Table(title=Text(benchmark, "bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("strategy", overflow="fold")
    for heading in ("seeds", *(metric.heading for metric in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows.itertuples():
        numbers = []
        for metric in columns:
            mean, half = format_mean(row, metric)
            number = Text(mean or "-", "bold" if row.setup in best.get(metric.name, ()) else "")
            has_room = half and metric.name == "average_accuracy"
            numbers.append(number.append(f" ± {half}", "dim") if has_room else number)
        table.add_row(Text(row.setup), str(row.seeds), *numbers)
    return table
