"""Plot the accuracies of one run. Task numbers start at 1."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clbench.runs.folder import atomically

LABELLED = 12  # largest number of tasks for which the entries of R are labelled


def save_plots(r: NDArray[np.floating], within: list[dict[str, Any]], title: str, folder: Path) -> None:
    """Write ``accuracy_matrix.png``, ``accuracy_over_tasks.png``, and with ``within`` also ``accuracy_within_tasks.png``.

    Args:
        r: R (T, T).
        within: Evaluations inside tasks, as in metrics.json.
        title: Title of the figures.
        folder: Folder for the files.
    """
    figures = {"accuracy_matrix": accuracy_matrix(r, title), "accuracy_over_tasks": accuracy_over_tasks(r, title)}
    if within:
        figures["accuracy_within_tasks"] = accuracy_within_tasks(r, within, title)
    for name, figure in figures.items():
        figure.set_dpi(150)
        canvas = FigureCanvasAgg(figure)  # draws the figure once, whereas savefig draws it twice
        atomically(folder / f"{name}.png", canvas.print_png)


def accuracy_within_tasks(r: NDArray[np.floating], within: list[dict[str, Any]], title: str) -> Figure:
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
        axes.plot(x, [w["accuracy"][j] for w in evaluations], color=colours[j], linewidth=1.2, label=f"task {j + 1}")
    for start in starts[1:]:
        axes.axvline(start, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="training steps up to the last evaluation in each task (dotted: a new task)", ylabel="test accuracy"
    )
    _set_title(figure, axes, title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def accuracy_matrix(r: NDArray[np.floating], title: str) -> Figure:
    """Plot a heatmap of R: a row per trained task, a column per evaluated task. Rows of nan stay empty."""
    tasks = len(r)
    side = max(3.2, min(0.62 * tasks + 1.6, 10))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(r, vmin=0, vmax=1, cmap="viridis")
    axes.set(xlabel="evaluated on task", ylabel="after training task")
    step = 1 if tasks <= LABELLED else -(-tasks // LABELLED)
    ticks = list(range(0, tasks, step))
    numbers = [str(index + 1) for index in ticks]
    axes.set_xticks(ticks, numbers)
    axes.set_yticks(ticks, numbers)
    _set_title(figure, axes, title)
    if tasks <= LABELLED:
        for i in range(int((~np.isnan(r[:, 0])).sum())):
            for j in range(tasks):
                colour = "black" if r[i, j] > 0.6 else "white"
                weight = "bold" if i == j else "normal"
                axes.text(j, i, f"{r[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=8, fontweight=weight)
    figure.colorbar(image, ax=axes, label="test accuracy")
    return figure


def accuracy_over_tasks(r: NDArray[np.floating], title: str) -> Figure:
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
    axes.set(xlabel="after training task", ylabel="test accuracy", xticks=numbers)
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
