"""The figure of lam: average accuracy against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from clbench.report.style import COLOURS, PAPER, WIDTH, Colours, Drawn, legend_below
from clbench.report.tables import number
from clbench.runs.names import WORDS, said

BANDED = 4  # curves of a panel that have bands; more would hide each other
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
TICKS = 6  # values of lam written at the axis; from more on, powers of ten


def lam_curves(cells: DataFrame, colours: Colours) -> Drawn | None:
    """Average accuracy against lam, a panel per strategy, a line per variant; the best lam and the one chosen are marked.

    A strategy with one variant has its own colour; else a colour stands for the same options in every panel.
    """
    curves = cells[cells.lams > 1]
    strategies = sorted(set(curves.strategy))
    if not strategies:
        return None
    columns = min(len(strategies), 3)
    lines = -(-len(strategies) // columns)
    figure = Figure(figsize=(WIDTH if curves.variant.nunique() > 1 else 4.8, 2.6 * lines + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    styles = _styles(curves)
    titles: dict[str, list[str]] = {}
    for spare in grid.flat[len(strategies) :]:
        spare.set_visible(False)
    for panel, strategy in enumerate(strategies):
        axes, mine = grid.flat[panel], curves[curves.strategy == strategy]
        variants = list(mine.groupby("variant"))
        for k, (variant, of) in enumerate(variants):
            options = variant.removeprefix(strategy).strip()
            alone = len(variants) == 1
            look = {"color": colours[strategy], "ls": "-"} if alone else styles[options]
            gid = f"lam{panel}x{k}"
            _curve(axes, of, look, None if alone else options, gid, len(variants) <= BANDED)
            titles[gid] = [
                f"{row.cell}: {number(row, 'average_accuracy')}, {row.seeds} seeds" for row in of.itertuples()
            ]
        _beside(axes, cells, colours, named=panel % columns == columns - 1 or panel == len(strategies) - 1)
        _lam_axis(axes, sorted(set(mine.lam)))
        axes.set(title=strategy, xlabel="lam")
    for axes in grid[:, 0]:
        axes.set_ylabel("average accuracy (test)")
    legend_below(figure)
    return Drawn(figure, "Average accuracy against lam, for each strategy and variant", titles)


def _curve(axes: Axes, of: DataFrame, look: dict[str, Any], label: str | None, gid: str, band: bool) -> None:
    """One variant: its line, the best lam as a star, the one chosen in a ring."""
    colour, half = look["color"], of.average_accuracy_ci.fillna(0)
    if band:
        low, high = of.average_accuracy - half, of.average_accuracy + half
        axes.fill_between(of.lam, low, high, color=colour, alpha=0.13, lw=0)
    axes.plot(of.lam, of.average_accuracy, marker="o", ms=4, color=colour, ls=look["ls"], label=label, gid=gid)
    best, picked = of[of.oracle], of[of.chosen]
    axes.plot(best.lam, best.average_accuracy, "*", ms=13, color=colour, mec=PAPER, zorder=4)
    axes.plot(picked.lam, picked.average_accuracy, "o", ms=12, mfc="none", mec=colour, mew=1.6, zorder=3)


def _beside(axes: Axes, cells: DataFrame, colours: Colours, named: bool) -> None:
    """Fine-tuning and joint training as lines, named to the right."""
    for row in cells[cells.strategy.isin(list(WORDS))].itertuples():
        colour = colours[row.strategy]
        axes.axhline(row.average_accuracy, color=colour, ls="--", lw=1)
        if named:
            place = (1.03, row.average_accuracy)
            words = WORDS[row.strategy].replace(" ", "\n", 1)
            axes.annotate(words, place, xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=colour)


def _styles(curves: DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and line style for the options of a variant: a colour per Fisher type, a style per sample count and the rest."""
    fishers: dict[str, list[str]] = {}
    for row in curves.itertuples():
        of_fisher = fishers.setdefault(row.fisher if isinstance(row.fisher, str) else "", [])
        options = row.variant.removeprefix(row.strategy).strip()
        if options not in of_fisher:
            of_fisher.append(options)
    several = len(fishers) > 1
    styles = {}
    for i, of_fisher in enumerate(fishers.values()):
        for k, options in enumerate(of_fisher):
            colour, style = (i, k) if several else (k, 0)
            styles[options] = {"color": COLOURS[colour % len(COLOURS)], "ls": LINES[style % len(LINES)]}
    return styles


def _lam_axis(axes: Axes, lams: Sequence[float]) -> None:
    """Logarithmic; with lam=0, linear below the least positive one."""
    positive = [lam for lam in lams if lam > 0]
    if len(positive) == len(lams):
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(positive, default=1.0))
    axes.minorticks_off()
    if len(lams) <= TICKS:
        axes.set_xticks(lams, [said(float(lam)) for lam in lams])
