"""Figures of accuracy, or another quality, after each task, as curves and as matrices."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas import DataFrame

from clbench.metrics.interval import half_width
from clbench.metrics.quality import ACCURACY
from clbench.report.columns import quality_of_rows
from clbench.report.style import (
    MUTED,
    Colours,
    LabelledFigure,
    add_legend_below,
    average_label,
    is_near,
    line_style,
    width,
    wrap,
)
from clbench.runs.plots import colour_scale, text_colour

MAX_LINES = 8  # with more rows, only the best of each strategy is drawn over tasks
MAX_MATRICES = 12
TITLE_WIDTH = 16  # characters of a line in the title of a heatmap
MAX_NUMBERED = 6  # largest number of tasks for which a heatmap contains numbers


def draw_over_tasks(runs: DataFrame, rows: DataFrame, colours: Colours) -> LabelledFigure | None:
    """Draw the average quality on the tasks so far after each task: mean and interval over seeds, and chance."""
    if rows.tasks.max() < 2:
        return None
    if len(rows) > MAX_LINES:
        rows = rows.drop_duplicates("strategy")
    quality = quality_of_rows(rows)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(rows.itertuples()):
        so_far = np.stack([_average_so_far(r) for r in runs[runs.setup == row.setup].accuracy_matrix])
        mean = so_far.mean(0)
        half = (
            np.nan_to_num(half_width(so_far.std(0, ddof=1), np.full(len(mean), len(so_far))))
            if len(so_far) > 1
            else 0 * mean
        )
        x = np.arange(1, len(mean) + 1)
        axes.fill_between(x, mean - half, mean + half, color=colours[row.strategy], alpha=0.12, lw=0)
        axes.plot(x, mean, ms=5, color=colours[row.strategy], label=row.setup, **line_style(number, len(rows)))
    ylabel = "average accuracy on these tasks" if quality == ACCURACY else average_label(quality, "on these tasks")
    axes.set(xlabel="tasks learned", ylabel=ylabel, xticks=_ticks(int(rows.tasks.max())))
    chance = next(iter(runs.chance))
    if is_near(min(chance), runs.average_accuracy):
        axes.plot(range(1, len(chance) + 1), chance, color=MUTED, ls=":", lw=1.2, label="chance")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 1.01) if quality.is_share else high)  # an interval may exceed the range of R
    add_legend_below(figure)
    return LabelledFigure(figure, f"Average {quality.label} on the tasks so far, after each task", {})


def draw_matrices(runs: DataFrame, rows: DataFrame) -> LabelledFigure:
    """Draw the matrix R of each row, averaged over seeds."""
    quality, rows = quality_of_rows(rows), rows.head(MAX_MATRICES)
    matrices = [np.mean(np.stack(list(runs[runs.setup == setup].accuracy_matrix)), 0) for setup in rows.setup]
    scale = colour_scale(np.concatenate([r.ravel() for r in matrices]), quality)
    columns = min(len(rows), max(1, round(width() / 1.6)))
    lines = -(-len(rows) // columns)
    line_breaks = max(wrap(setup, TITLE_WIDTH).count("\n") for setup in rows.setup)
    size = (width() if columns > 2 else min(width(), 2.4 * columns + 0.8), (1.7 + 0.13 * line_breaks) * lines + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    image = None
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for setup, r, axes in zip(rows.setup, matrices, grid.flat, strict=False):
        image = axes.imshow(r, **scale, interpolation="none")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(wrap(setup, TITLE_WIDTH), fontsize="small")
        tasks = len(r)
        numbers = _ticks(tasks, 10 if tasks <= 10 else 5)  # two-digit numbers are wide
        ticks = [number - 1 for number in numbers]
        axes.set_xticks(ticks, [*map(str, numbers)])
        axes.set_yticks(ticks, [*map(str, numbers)])
        axes.tick_params(length=0, labelsize="small")
        if tasks <= MAX_NUMBERED:
            for (i, j), a in np.ndenumerate(r):
                axes.text(
                    j,
                    i,
                    "" if np.isnan(a) else f"{a:.2f}".lstrip("0"),
                    ha="center",
                    va="center",
                    fontsize="x-small",
                    color=text_colour(a, image, quality),
                )
    figure.supxlabel("evaluated on task", fontsize="medium")
    figure.supylabel("after training task", fontsize="medium")
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.7, label=f"test {quality.label}", aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize="small")
    bar.ax.yaxis.label.set_fontsize("medium")
    return LabelledFigure(figure, f"{quality.label.capitalize()} matrices, mean over seeds", {})


def _average_so_far(r: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([r[i, : i + 1].mean() for i in range(len(r))])


def _ticks(tasks: int, most: int = 10) -> list[int]:
    step = -(-tasks // most)
    return list(range(1, tasks + 1, step))
