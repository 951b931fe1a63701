"""Tables over seeds as CSV, LaTeX and for the terminal."""

from __future__ import annotations

from pathlib import Path

from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.table import Table

from clbench.report.columns import COLUMNS, METRICS, filled_metrics, find_best_setups, format_mean

TERMINAL_METRICS = ("average_accuracy", "forgetting", "intransigence", "seconds_total")
TEX_METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "intransigence", "seconds_total")


def write_csv(setups: DataFrame, path: Path) -> None:
    """Write every setup in full precision: ``M`` is the mean over seeds, ``M_ci`` the half-width of its 95 % interval."""
    metrics = [name for metric in METRICS for name in (metric, f"{metric}_ci")]
    columns = ["benchmark", "method", "strategy", "lam", "fisher", "samples", "seeds", "selected", "oracle", *metrics]
    setups[columns].to_csv(path, index=False)


def write_tex(rows: DataFrame, select: str, path: Path) -> None:
    """Write the selected rows, one booktabs table per benchmark, for ``input`` in a document that loads booktabs."""
    tables = ["% mean and half-width of the 95 % Student t interval over seeds; needs \\usepackage{booktabs}"]
    tables += [
        _tex_table(str(name), of_benchmark, select) for name, of_benchmark in rows.groupby("benchmark", sort=False)
    ]
    path.write_text("\n\n".join(tables) + "\n")


def _tex_table(benchmark: str, rows: DataFrame, select: str) -> str:
    names = [name for name in filled_metrics(rows) if name in TEX_METRICS]
    best = find_best_setups(rows)
    lines = [
        f"% {benchmark}" + (f"; lam selected on {select} data" if rows[rows.lam_count > 1].selected.any() else ""),
        f"\\begin{{tabular}}{{lr{'r' * len(names)}}}",
        "\\toprule",
        " & ".join(["strategy", "seeds", *(COLUMNS[name].heading for name in names)]) + r" \\",
        "\\midrule",
    ]
    for row in rows.itertuples():
        numbers = []
        for name in names:
            mean, half = format_mean(row, name)
            if best.get(name) == row.setup:
                mean = f"\\mathbf{{{mean}}}"
            numbers.append(f"${mean} \\pm {half}$".replace(",", "{,}") if half else f"${mean}$" if mean else "--")
        lines.append(" & ".join([escape_tex(row.setup), str(row.seeds), *numbers]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def escape_tex(text: str) -> str:
    """Escape text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "_%&#${}" else c) for c in text)


def terminal_tables(rows: DataFrame) -> list[Table]:
    """Return one table per benchmark."""
    return [_terminal_table(str(name), of_benchmark) for name, of_benchmark in rows.groupby("benchmark", sort=False)]


def _terminal_table(benchmark: str, rows: DataFrame) -> Table:
    names = [name for name in filled_metrics(rows) if name in TERMINAL_METRICS]
    best = find_best_setups(rows)
    table = Table(title=benchmark, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("strategy", overflow="fold")
    for heading in ("seeds", *(COLUMNS[name].heading for name in names)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows.itertuples():
        numbers = []
        for name in names:
            mean, half = format_mean(row, name)
            text = f"[bold]{mean}[/bold]" if best.get(name) == row.setup else mean
            numbers.append(f"{text} [dim]± {half}[/dim]" if half and name == "average_accuracy" else text or "-")
        table.add_row(str(row.setup).replace("[", r"\["), str(row.seeds), *numbers)
    return table
