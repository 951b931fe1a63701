"""Plot the accuracies, or values of another quality, of one run. Task numbers start at 1."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from clbench.metrics.quality import ACCURACY, Quality
from clbench.runs.folder import atomically

LABELLED = 12  # largest number of tasks for which the entries of R are labelled


def plot_names(quality: Quality, has_within: bool) -> list[str]:
    """Return the names of the files that ``save_plots`` writes, without their suffix.

    >>> from clbench.metrics.quality import QUALITIES
    >>> plot_names(QUALITIES["bits_per_byte"], has_within=False)
    ['quality_matrix', 'quality_over_tasks']
    """
    names = ["accuracy_matrix", "accuracy_over_tasks", *(["accuracy_within_tasks"] if has_within else [])]
    return [quality.key(name) for name in names]


def save_plots(
    r: NDArray[np.floating],
    within: list[dict[str, Any]],
    title: str,
    folder: Path,
    quality: Quality = ACCURACY,
    data: str = "test",
) -> None:
    """Write the matrix R, the curves over tasks, and with ``within`` also those inside tasks, under ``plot_names``.

    Args:
        r: R (T, T).
        within: Evaluations inside tasks, as in metrics.json.
        title: Title of the figures.
        folder: Folder for the files.
        quality: Quality of the values.
        data: Data on which the values were measured, ``test`` or ``training``.
    """
    figures = [accuracy_matrix(r, title, quality, data), accuracy_over_tasks(r, title, quality, data)]
    if within:
        figures.append(accuracy_within_tasks(r, within, title, quality, data))
    for name, figure in zip(plot_names(quality, bool(within)), figures, strict=True):
        figure.set_dpi(150)
        canvas = FigureCanvasAgg(figure)  # draws the figure once, whereas savefig draws it twice
        atomically(folder / f"{name}.png", canvas.print_png)


def colour_scale(values: NDArray[np.floating], quality: Quality) -> dict[str, Any]:
    """Return the arguments of ``imshow`` for R. Brighter is better; shares have the same scale in every figure."""
    low, high = (0, 1) if quality.is_share else (np.nanmin(values), np.nanmax(values))
    return {"vmin": low, "vmax": high, "cmap": "viridis" if quality.higher_is_better else "viridis_r"}


def text_colour(value: float, image: AxesImage, quality: Quality) -> str:
    """Return the colour of a number on its cell of a matrix drawn with ``colour_scale``."""
    position = float(np.asarray(image.norm(np.array(value))))
    return "black" if (position if quality.higher_is_better else 1 - position) > 0.6 else "white"


def accuracy_within_tasks(
    r: NDArray[np.floating],
    within: list[dict[str, Any]],
    title: str,
    quality: Quality = ACCURACY,
    data: str = "test",
) -> Figure:
    """Plot the accuracy on each task over steps, from the start of its training, which shows the stability gap."""
    tasks = len(r)
    figure = Figure(figsize=(9, _height(tasks)), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, tasks))
    lengths = [max((w["step"] for w in within if w["task"] == i), default=0) for i in range(tasks)]
    starts = [sum(lengths[:i]) for i in range(tasks)]
    for j in range(tasks):
        evaluations = [w for w in within if w["task"] >= j]
        x = [starts[w["task"]] + w["step"] for w in evaluations]
        y = [w[quality.key("accuracy")][j] for w in evaluations]
        axes.plot(x, y, color=colours[j], linewidth=1.2, label=f"task {j + 1}")
    for start in starts[1:]:
        axes.axvline(start, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="training steps up to the last evaluation in each task (dotted: a new task)",
        ylabel=f"{data} {quality.label}",
    )
    _set_title(figure, axes, title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def accuracy_matrix(r: NDArray[np.floating], title: str, quality: Quality = ACCURACY, data: str = "test") -> Figure:
    """Plot a heatmap of R: a row per trained task, a column per evaluated task. Rows of nan stay empty."""
    tasks = len(r)
    side = max(3.2, min(0.62 * tasks + 1.6, 10))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(r, **colour_scale(r, quality))
    axes.set(xlabel="evaluated on task", ylabel="after training task")
    step = 1 if tasks <= LABELLED else -(-tasks // LABELLED)
    ticks = list(range(0, tasks, step))
    numbers = [str(index + 1) for index in ticks]
    axes.set_xticks(ticks, numbers)
    axes.set_yticks(ticks, numbers)
    _set_title(figure, axes, title)
    if tasks <= LABELLED:
        for i in range(int((~np.isnan(r[:, 0])).sum())):
            for j in map(int, np.flatnonzero(~np.isnan(r[i]))):
                colour = text_colour(r[i, j], image, quality)
                weight = "bold" if i == j else "normal"
                axes.text(j, i, f"{r[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=8, fontweight=weight)
    figure.colorbar(image, ax=axes, label=f"{data} {quality.label}")
    return figure


def accuracy_over_tasks(r: NDArray[np.floating], title: str, quality: Quality = ACCURACY, data: str = "test") -> Figure:
    """Plot the accuracy on each task after it was learned, and the average over the tasks so far."""
    tasks = len(r)
    columns = 2 if tasks > 10 else 1
    figure = Figure(figsize=(7, _height(-(-(tasks + 1) // columns))), layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, tasks))
    for j in range(tasks):
        axes.plot(
            range(j + 1, tasks + 1),
            r[j:, j],
            marker="o",
            markersize=3.5,
            color=colours[j],
            label=f"task {j + 1}",
        )
    average = [float(r[i, : i + 1].mean()) for i in range(tasks)]
    axes.plot(range(1, tasks + 1), average, color="black", linewidth=2, linestyle="--", label="mean so far")
    numbers = range(1, tasks + 1, max(1, tasks // LABELLED))
    axes.set(xlabel="after training task", ylabel=f"{data} {quality.label}", xticks=numbers)
    _set_title(figure, axes, title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=columns, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _height(entries: int) -> float:
    """Return the height in inches of a figure with ``entries`` lines in its legend."""
    return max(4, 0.18 * entries + 0.4)


def _set_title(figure: Figure, axes: Axes, title: str) -> None:
    """Set ``title``, wrapped to the width of the figure without its legend or colour bar, and not parsed as a formula."""
    text = fill(title, int(9 * figure.get_figwidth()), break_on_hyphens=False)
    axes.set_title(text, fontsize=10, parse_math=False)
