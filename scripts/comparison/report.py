"""Markdown tables and figure of compare_fisher.py. Cells and lines are medians over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
Read = Callable[[Row], float | None]

STYLES = {
    "van de Ven, one sampled label": ("#E69F00", "v", "-"),
    "van de Ven, true label": ("#0072B2", "o", "-"),
    "van de Ven, predicted label": ("#56B4E9", "^", "--"),
    "Mammoth": ("#CC79A7", "D", ":"),
    "FACIL": ("#009E73", "P", "-"),
    "Avalanche (really run)": ("#D55E00", "s", "-"),
    "PyCIL": ("#000000", "x", ":"),
    "SequeL": ("#7F7F7F", "*", "--"),
}
"""Colour, marker and line style of the formulas in the figure. The others are in the tables only."""


def ratio(row: Row) -> float | None:
    """Return the trace divided by that of the exact Fisher, over all parameters."""
    return row["ratio"]["all"]


def head_ratio(row: Row) -> float | None:
    """Return the trace divided by that of the exact Fisher, over the head."""
    return row["ratio"]["head"]


def lam_here(row: Row) -> float | None:
    """Return the lam of clbench with the exact Fisher at which the penalty has the same trace as with lam=1 in the source."""
    return None if ratio(row) is None else ratio(row) * row["lam_factor"]


def correlation(row: Row) -> float | None:
    """Return Spearman's rank correlation over all parameters."""
    return row["rank_correlation"]


def correlation_nonzero(row: Row) -> float | None:
    """Return Spearman's rank correlation over the parameters with nonzero exact Fisher."""
    return row["rank_correlation_nonzero"]


def over_seeds(rows: Sequence[Row], formula: str, step: int, read: Read) -> list[float]:
    """Return the defined values of one cell, one per seed."""
    mine = (read(row) for row in rows if row["formula"] == formula and row["step"] == step)
    return [value for value in mine if value is not None]


def table(rows: Sequence[Row], read: Read, form: str) -> str:
    """Return a table of formulas x steps with the median over seeds, and the range if seeds differ."""
    steps = sorted({row["step"] for row in rows})
    lines = ["| step | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    for name in dict.fromkeys(row["formula"] for row in rows):
        cells = []
        for step in steps:
            values = over_seeds(rows, name, step, read)
            middle, low, high = (format(of(values), form) if values else "-" for of in (median, min, max))
            cells.append(middle if low == high else f"{middle} ({low} to {high})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(about: str, command: str, rows: Sequence[Row], effects: Sequence[Row]) -> str:
    """Return all tables in Markdown."""
    zero = [row["exact_zero"] for row in rows]
    differs = [row["rebuilt_differs"] for row in rows if "rebuilt_differs" in row]
    parts = [
        f"`{command}`",
        f"{about}. Median over seeds (range). The exact Fisher of {min(zero):.0%} to {max(zero):.0%} of the parameters is 0.",
        "**Trace divided by that of the exact Fisher, all parameters**",
        table(rows, ratio, ".2g"),
        "**Trace divided by that of the exact Fisher, head only**",
        table(rows, head_ratio, ".2g"),
        "**Spearman rank correlation with the exact Fisher, all parameters**",
        table(rows, correlation, ".3f"),
        "**Spearman rank correlation with the exact Fisher, parameters whose exact Fisher is not 0**",
        table(rows, correlation_nonzero, ".3f"),
        "**lam of clbench with fisher=exact that has the same trace as lam=1 in the source**",
        table(rows, lam_here, ".2g"),
        "**A convolutional network with BatchNorm after one pass over the data that changes no weight**",
        "| pass | predictions moved by | test accuracy before | after |\n|---|---|---|---|",
    ]
    parts[-1] += "".join(
        f"\n| {e['pass']} | {e['moved']:.2g} | {e['accuracy_before']:.4f} | {e['accuracy_after']:.4f} |"
        for e in effects
    )
    if differs:
        parts.append(
            f"The importances of Avalanche and of its formula here differ by at most {max(differs):.1g} (relative)."
        )
    return "\n\n".join(parts) + "\n"


def draw(about: str, rows: Sequence[Row]) -> Figure:
    """Draw the trace ratio on a logarithmic axis and the rank correlation below. Vertical lines are ranges over seeds."""
    steps = sorted({row["step"] for row in rows})
    names = [name for name in STYLES if any(row["formula"] == name for row in rows)]
    figure = Figure(figsize=(8, 8), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[1.7, 1])
    upper.axhline(1, color="black", linewidth=2, label="exact Fisher")
    for i, name in enumerate(names):
        aside = 0.06 * (i - (len(names) - 1) / 2)  # offset, so that equal values do not overlap
        _line(upper, rows, name, steps, ratio, aside)
        _line(lower, rows, name, steps, correlation_nonzero, aside)
    upper.set(yscale="log", ylabel="trace / trace of the exact Fisher")
    lower.set(xlabel="training steps", ylabel="rank correlation with the exact\nFisher, where that is not 0")
    lower.set_xticks(range(len(steps)), labels=map(str, steps))
    for axes in (upper, lower):
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(about, fontsize=10)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _line(axes: Axes, rows: Sequence[Row], name: str, steps: Sequence[int], read: Read, aside: float) -> None:
    colour, marker, dashes = STYLES[name]
    cells = [over_seeds(rows, name, step, read) or [math.nan] for step in steps]
    x = [i + aside for i in range(len(steps))]
    style = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.3, "markersize": 5.5}
    axes.plot(x, [median(cell) for cell in cells], label=name, **style)
    axes.vlines(x, [min(cell) for cell in cells], [max(cell) for cell in cells], color=colour, linewidth=1, alpha=0.7)
