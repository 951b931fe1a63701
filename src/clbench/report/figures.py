"""Figures of a benchmark: averages, and forgetting against learning. Further figures are in other modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from clbench.report.benchmark import Benchmark
from clbench.report.columns import format_interval, quality_of_rows
from clbench.report.figures_lam import draw_lam_curves
from clbench.report.figures_tasks import draw_matrices, draw_over_tasks
from clbench.report.style import (
    MUTED,
    PAPER,
    Colours,
    LabelledFigure,
    add_legend_below,
    average_label,
    characters,
    inline_svg,
    is_near,
    report_style,
    save_figure,
    svg_of,
    width,
    wrap,
)
from clbench.report.summary import is_reference, pareto_front

MAX_RANKED = 40  # rows of the figure of average accuracies, so that it fits on a page
NAME_WIDTH = 42  # characters per line of a name; more would leave too little space for the data


def draw_figures(
    benchmark: Benchmark, colours: Colours, folder: Path, prefix: str, inches: float | None = None
) -> dict[str, str]:
    """Write ``folder``/``prefix``NAME.png, .svg and .pdf of each figure with data, and return the SVG for the page by NAME.

    Args:
        benchmark: Results of the benchmark.
        colours: Colour of each strategy.
        folder: Folder of the files.
        prefix: First letters of the names of the files.
        inches: Width of the figures in the files, by default as on the page.
    """
    figures = {}
    with report_style():  # also while a figure is written, because that draws the ticks
        drawn = _draw_all(benchmark, colours)
        for name, labelled in drawn.items():
            svg = svg_of(labelled.figure)
            figures[name] = inline_svg(svg, labelled.label, labelled.titles, f"figure_{prefix}{name}-")
            if inches is None:
                save_figure(labelled.figure, folder / f"{prefix}{name}")
    if inches is not None:
        with report_style(inches):
            for name, labelled in _draw_all(benchmark, colours).items():
                save_figure(labelled.figure, folder / f"{prefix}{name}")
    return figures


def _draw_all(benchmark: Benchmark, colours: Colours) -> dict[str, LabelledFigure]:
    drawn = {name: draw(benchmark, colours) for name, draw in FIGURES.items()}
    return {name: labelled for name, labelled in drawn.items() if labelled is not None}


def draw_ranking(runs: DataFrame, rows: DataFrame, colours: Colours) -> LabelledFigure:
    """Draw the average quality of the best rows, best at the top: mean, 95 % interval, and a small dot per seed."""
    quality = quality_of_rows(rows)
    rows = rows.sort_values("average_accuracy", ascending=quality.higher_is_better, ignore_index=True).tail(MAX_RANKED)
    names = [wrap(setup, characters(NAME_WIDTH)) for setup in rows.setup]
    line_breaks = max(name.count("\n") for name in names)
    figure = Figure(figsize=(width(), max(0.34, 0.17 * (line_breaks + 1)) * len(rows) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    titles = {}
    for y, row in enumerate(rows.itertuples()):
        colour = colours[row.strategy]
        seeds = runs[runs.setup == row.setup]
        axes.plot(
            seeds.average_accuracy,
            np.full(len(seeds), y - 0.26),
            "o",
            color=colour,
            alpha=0.45,
            ms=3.5,
            mew=0,
            gid=f"seeds{y}",
        )
        titles[f"seeds{y}"] = [
            f"{row.setup}, seed {s}: {a:.4f}" for s, a in zip(seeds.seed, seeds.average_accuracy, strict=True)
        ]
        axes.errorbar(
            row.average_accuracy,
            y,
            xerr=None if np.isnan(row.average_accuracy_ci) else row.average_accuracy_ci,
            color=colour,
            elinewidth=2,
            capsize=0,
        )
        axes.plot(
            row.average_accuracy,
            y,
            "D" if is_reference(row.strategy) else "o",
            color=colour,
            mec=PAPER,
            ms=8,
            gid=f"mean{y}",
        )
        titles[f"mean{y}"] = [f"{row.setup}: {format_interval(row, 'average_accuracy')} over {row.seeds} seeds"]
    chance = next(iter(runs.chance))[-1]
    if is_near(chance, runs.average_accuracy):
        axes.axvline(chance, color=MUTED, ls=":", lw=1.2)
    axes.set(yticks=range(len(rows)), yticklabels=names, xlabel=average_label(quality), ylim=(-0.6, len(rows) - 0.4))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    label = f"Average {quality.label} of each strategy with its 95 % interval over seeds"
    return LabelledFigure(figure, label, titles)


def draw_tradeoff(setups: DataFrame, colours: Colours) -> LabelledFigure | None:
    """Draw forgetting against learning accuracy with the Pareto front. Points are setups, filled if selected."""
    setups = setups[setups.forgetting.notna()]
    if len(setups) < 2:
        return None
    quality = quality_of_rows(setups)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    titles = {}
    for k, (strategy, of_strategy) in enumerate(setups.groupby("strategy")):
        for is_selected, faces in ((False, "none"), (True, colours[strategy])):
            points = of_strategy[of_strategy.selected == is_selected]
            gid = f"setups{k}x{int(is_selected)}"
            axes.plot(
                points.learning_accuracy,
                points.forgetting,
                "D" if is_reference(strategy) else "o",
                mfc=faces,
                mec=PAPER if is_selected else colours[strategy],
                ms=9 if is_selected else 5.5,
                mew=1.2,
                alpha=1 if is_selected else 0.75,
                label=strategy if is_selected or not of_strategy.selected.any() else None,
                gid=gid,
                zorder=3 + is_selected,
            )
            titles[gid] = [
                f"{row.setup}: learning {quality.label} {format_interval(row, 'learning_accuracy')}, "
                f"forgetting {format_interval(row, 'forgetting')}"
                for row in points.itertuples()
            ]
    ordinary = setups[~setups.strategy.map(is_reference)].reset_index(drop=True)
    front = ordinary.iloc[pareto_front(quality.sign * ordinary.learning_accuracy, ordinary.forgetting)]
    axes.plot(front.learning_accuracy, front.forgetting, color=MUTED, ls=":", lw=1.5, zorder=2, label="Pareto front")
    axes.margins(0.07)
    axes.invert_yaxis()
    if not quality.higher_is_better:
        axes.invert_xaxis()
    axes.set(xlabel=f"learning {quality.label} (better to the right)", ylabel="forgetting (better upwards)")
    add_legend_below(figure)
    return LabelledFigure(figure, f"Forgetting against learning {quality.label} with the Pareto front", titles)


FIGURES: dict[str, Callable[[Benchmark, Colours], LabelledFigure | None]] = {
    "ranking": lambda b, colours: draw_ranking(b.runs, b.rows, colours),
    "lam_curves": lambda b, colours: draw_lam_curves(b.setups, colours),
    "over_tasks": lambda b, colours: draw_over_tasks(b.runs, b.rows, colours),
    "tradeoff": lambda b, colours: draw_tradeoff(b.setups, colours),
    "matrices": lambda b, colours: draw_matrices(b.runs, b.rows),
}
"""Figures by name. A figure without data is None."""
