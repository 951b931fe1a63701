"""Tables of rows over seeds: which columns, what they mean, and as CSV, LaTeX and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.table import Table

from clbench.report.statistics import HIGHER_IS_BETTER, LOWER_IS_BETTER, METRICS
from clbench.runs.names import REFERENCES


class Column(NamedTuple):
    """A metric: its heading, its meaning, and a number of it as text."""

    heading: str
    meaning: str
    text: Callable[[float], str]


def fraction(value: float) -> str:
    """An accuracy, or a difference of two."""
    return f"{value:z.3f}"  # z: no -0.000


def seconds(value: float) -> str:
    """Seconds, with a decimal where it says something."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes, for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


COLUMNS = {
    "average_accuracy": Column("average accuracy", "mean over tasks at the end: mean_j R[T-1][j]", fraction),
    "learning_accuracy": Column("learning accuracy", "right after each task was learned: mean_i R[i][i]", fraction),
    "forgetting": Column(
        "forgetting",
        "mean over j < T-1 of max over j <= i <= T-2 of R[i][j], minus R[T-1][j] (Chaudhry et al. 2018)",
        fraction,
    ),
    "backward_transfer": Column(
        "backward transfer", "mean over j < T-1 of R[T-1][j] - R[j][j] (Lopez-Paz and Ranzato 2017)", fraction
    ),
    "forward_transfer": Column(
        "forward transfer", "mean over j >= 1 of R[j-1][j] - b[j], b of the untrained net", fraction
    ),
    "min_accuracy": Column(
        "min accuracy",
        "mean over j < T-1 of the lowest accuracy on j at any evaluation after it was learned (De Lange et al. 2023); "
        "after each task only, unless the runs have eval_every",
        fraction,
    ),
    "worst_case_accuracy": Column(
        "worst case", "R[T-1][T-1] / T + (1 - 1/T) min accuracy (De Lange et al. 2023)", fraction
    ),
    "stability_gap": Column(
        "stability gap", "mean of R[i-1][j] - lowest accuracy on j while task i is learned; needs eval_every", fraction
    ),
    "intransigence": Column(
        "intransigence",
        "mean_j R*[j][j] - R[j][j], R* of the same setting and seed: joint_from_scratch, else joint, else independent "
        "(Chaudhry et al. 2018)",
        fraction,
    ),
    "nll": Column("nll", "final negative log-likelihood in nats, mean over tasks", fraction),
    "ece": Column("ece", "final expected calibration error, 15 equal-width bins, L1, mean over tasks", fraction),
    "validation_average_accuracy": Column(
        "validation", "average accuracy on validation data; lam is chosen by it", fraction
    ),
    "seconds_total": Column("seconds", "the whole run, reading data included", seconds),
    "seconds_train": Column("training", "seconds of the task loop that are not importance or evaluation", seconds),
    "seconds_importance": Column("importance", "seconds of measuring importance", seconds),
    "seconds_evaluation": Column("evaluation", "seconds of evaluation", seconds),
    "bytes": Column("kept", "bytes that the strategy keeps of importance, the most after any task", size),
}
TERMINAL = ("average_accuracy", "forgetting", "intransigence", "seconds_total")
PRINTED = ("average_accuracy", "learning_accuracy", "forgetting", "intransigence", "seconds_total")


def mean_and_half(row: Any, metric: str) -> tuple[str, str]:
    """The mean as text, and half of its interval or ""."""
    column, mean, half = COLUMNS[metric], getattr(row, metric), getattr(row, f"{metric}_ci")
    return (
        "" if math.isnan(mean) else column.text(mean),
        "" if math.isnan(half) or metric == "bytes" else column.text(half),
    )


def number(row: Any, metric: str) -> str:
    """0.873 ± 0.011, or without the interval where there is one seed."""
    mean, half = getattr(row, metric), getattr(row, f"{metric}_ci")
    return fraction(mean) if math.isnan(half) else f"{fraction(mean)} ± {fraction(half)}"


def filled(rows: DataFrame) -> list[str]:
    """The metrics that at least one row has; of a metric that is 0 everywhere (bytes of rehearsal) nothing is said."""
    return [name for name in METRICS if rows[name].notna().any() and not (rows[name].fillna(0) == 0).all()]


def best(rows: DataFrame) -> dict[str, str]:
    """The cell with the best mean of each metric, references left out; only where two or more compete."""
    ordinary = rows[~rows.strategy.isin(REFERENCES)].set_index("cell")
    found = {}
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        values = ordinary[name].dropna()
        if len(values) > 1:
            found[name] = str(values.idxmax() if name in HIGHER_IS_BETTER else values.idxmin())
    return found


def write_csv(cells: DataFrame, path: Path) -> None:
    """Every cell, full precision: ``M`` is the mean over seeds, ``M_ci`` half of its 95 % Student interval."""
    metrics = [name for metric in METRICS for name in (metric, f"{metric}_ci")]
    columns = ["setting", "variant", "strategy", "lam", "fisher", "samples", "seeds", "chosen", "oracle", *metrics]
    cells[columns].to_csv(path, index=False)


def write_tex(rows: DataFrame, select: str, path: Path) -> None:
    """The rows shown, a booktabs table per setting, for ``input`` in a document that loads booktabs."""
    parts = ["% mean and half of the 95 % Student interval over seeds; needs \\usepackage{booktabs}"]
    for setting, of in rows.groupby("setting", sort=False):
        names = [name for name in filled(of) if name in PRINTED]
        bold = best(of)
        lines = [
            f"% {setting}" + (f"; lam chosen on {select} data" if of[of.lams > 1].chosen.any() else ""),
            f"\\begin{{tabular}}{{lr{'r' * len(names)}}}",
            "\\toprule",
            " & ".join(["strategy", "seeds", *(COLUMNS[name].heading for name in names)]) + r" \\",
            "\\midrule",
        ]
        for row in of.itertuples():
            numbers = []
            for name in names:
                mean, half = mean_and_half(row, name)
                if bold.get(name) == row.cell:
                    mean = f"\\mathbf{{{mean}}}"
                numbers.append(f"${mean} \\pm {half}$".replace(",", "{,}") if half else f"${mean}$" if mean else "--")
            lines.append(" & ".join([escaped(row.cell), str(row.seeds), *numbers]) + r" \\")
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    path.write_text("\n\n".join(parts) + "\n")


def escaped(text: str) -> str:
    """Text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "_%&#${}" else c) for c in text)


def for_terminal(rows: DataFrame) -> list[Table]:
    """A table per setting."""
    tables = []
    for setting, of in rows.groupby("setting", sort=False):
        names = [name for name in filled(of) if name in TERMINAL]
        table = Table(title=str(setting), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
        table.add_column("strategy", overflow="fold")
        for heading in ("seeds", *(COLUMNS[name].heading for name in names)):
            table.add_column(heading, justify="right", no_wrap=True)
        bold = best(of)
        for row in of.itertuples():
            cells = []
            for name in names:
                mean, half = mean_and_half(row, name)
                mean = f"[bold]{mean}[/bold]" if bold.get(name) == row.cell else mean
                cells.append(f"{mean} [dim]± {half}[/dim]" if half and name == "average_accuracy" else mean or "-")
            table.add_row(str(row.cell).replace("[", r"\["), str(row.seeds), *cells)
        tables.append(table)
    return tables
