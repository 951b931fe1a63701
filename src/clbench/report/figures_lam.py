"""Figure of average accuracy, or another quality, against lam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from clbench.report.columns import format_interval, quality_of_rows
from clbench.report.style import (
    COLOURS,
    DASHES,
    MARKERS,
    PAPER,
    Colours,
    LabelledFigure,
    add_legend_below,
    average_label,
    characters,
    width,
    wrap,
)
from clbench.runs.names import BASELINE_LABELS, format_value

MAX_METHODS = 12  # curves in a panel, those with the best average at any lam
MAX_BANDS = 4  # with more curves in a panel, bands would overlap and are left out
TITLE_WIDTH = 24  # characters of a line in the title of a panel
MAX_TICKS = 6  # with more values of lam, the ticks are powers of ten


def draw_lam_curves(setups: DataFrame, colours: Colours) -> LabelledFigure | None:
    """Draw the average quality against lam, one panel per strategy and one line per method, with best and selected lam.

    A strategy with a single method has the colour of the strategy. Otherwise, equal options have the same colour in every panel.
    """
    curves = setups[setups.lam_count > 1]
    if curves.empty:
        return None
    quality = quality_of_rows(curves)
    ranks = curves.assign(rank=quality.sign * curves.average_accuracy).groupby(["strategy", "method"])["rank"]
    best = ranks.max().sort_values(ascending=False)
    curves = curves[curves.method.isin(best.groupby("strategy").head(MAX_METHODS).index.get_level_values("method"))]
    strategies = sorted(set(curves.strategy))
    columns = min(len(strategies), max(1, round(width() / 2.13)))
    lines = -(-len(strategies) // columns)
    figure = Figure(
        figsize=(width() if curves.method.nunique() > 1 else min(width(), 4.8), 2.6 * lines + 0.6), layout="constrained"
    )
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    styles = _styles(curves)
    titles: dict[str, list[str]] = {}
    for spare in grid.flat[len(strategies) :]:
        spare.set_visible(False)
    for panel, strategy in enumerate(strategies):
        axes, of_strategy = grid.flat[panel], curves[curves.strategy == strategy]
        methods = list(of_strategy.groupby("method"))
        for k, (method, curve) in enumerate(methods):
            options = method.removeprefix(strategy).strip()
            is_single = len(methods) == 1
            style = {"color": colours[strategy], "ls": "-", "marker": "o"} if is_single else styles[options]
            gid = f"lam{panel}x{k}"
            _draw_curve(axes, curve, style, None if is_single else options, gid, len(methods) <= MAX_BANDS)
            titles[gid] = [
                f"{row.setup}: {format_interval(row, 'average_accuracy')}, {row.seeds} seeds"
                for row in curve.itertuples()
            ]
        _draw_baselines(axes, setups, colours, is_named=panel % columns == columns - 1 or panel == len(strategies) - 1)
        _scale_lam_axis(axes, sorted(set(of_strategy.lam)))
        axes.set(title=wrap(strategy, characters(TITLE_WIDTH * 3 // columns)), xlabel="lam")
    for axes in grid[:, 0]:
        axes.set_ylabel(average_label(quality, "test"))
    add_legend_below(figure)
    return LabelledFigure(figure, f"Average {quality.label} against lam, for each method", titles)


def _draw_curve(axes: Axes, curve: DataFrame, style: dict[str, Any], label: str | None, gid: str, band: bool) -> None:
    """Draw the line of one method, with a star at its best lam and a ring at its selected lam."""
    colour, half = style["color"], curve.average_accuracy_ci.fillna(0)
    if band:
        low, high = curve.average_accuracy - half, curve.average_accuracy + half
        axes.fill_between(curve.lam, low, high, color=colour, alpha=0.13, lw=0)
    axes.plot(curve.lam, curve.average_accuracy, ms=4, label=label, gid=gid, **style)
    best, selected = curve[curve.oracle], curve[curve.selected]
    axes.plot(best.lam, best.average_accuracy, "*", ms=13, color=colour, mec=PAPER, zorder=4)
    axes.plot(selected.lam, selected.average_accuracy, "o", ms=12, mfc="none", mec=colour, mew=1.6, zorder=3)


def _draw_baselines(axes: Axes, setups: DataFrame, colours: Colours, is_named: bool) -> None:
    """Draw fine-tuning and joint training as horizontal lines, labelled on the right."""
    for row in setups[setups.strategy.isin(list(BASELINE_LABELS))].itertuples():
        colour = colours[row.strategy]
        axes.axhline(row.average_accuracy, color=colour, ls="--", lw=1)
        if is_named:
            position = (1.03, row.average_accuracy)
            text = BASELINE_LABELS[row.strategy].replace(" ", "\n", 1)
            axes.annotate(
                text, position, xycoords=("axes fraction", "data"), va="center", fontsize="small", color=colour
            )


def _styles(curves: DataFrame) -> dict[str, dict[str, Any]]:
    """Return colour, dashes and marker of each method: a colour per Fisher type, dashes per other options."""
    fishers: dict[str, list[str]] = {}
    for row in curves.itertuples():
        of_fisher = fishers.setdefault(row.fisher if isinstance(row.fisher, str) else "", [])
        options = row.method.removeprefix(row.strategy).strip()
        if options not in of_fisher:
            of_fisher.append(options)
    several = len(fishers) > 1
    styles: dict[str, dict[str, Any]] = {}
    for i, of_fisher in enumerate(fishers.values()):
        for k, options in enumerate(of_fisher):
            colour, style = (i, k) if several else (k, 0)
            marker = MARKERS[len(styles) % len(MARKERS)]
            dashes = DASHES[(style if several else len(styles)) % len(DASHES)]
            styles[options] = {"color": COLOURS[colour % len(COLOURS)], "ls": dashes, "marker": marker}
    return styles


def _scale_lam_axis(axes: Axes, lams: Sequence[float]) -> None:
    """Make the axis logarithmic, or with lam=0, linear below the smallest positive lam."""
    positive = [lam for lam in lams if lam > 0]
    if len(positive) == len(lams):
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(positive, default=1.0))
    axes.minorticks_off()
    if len(lams) <= MAX_TICKS:
        axes.set_xticks(lams, [format_value(float(lam)) for lam in lams])
