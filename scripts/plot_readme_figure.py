"""Draw the figure of the README: accuracy over tasks of fine-tuning and of the README's EWC command, light and dark.

``python scripts/plot_readme_figure.py`` trains the two runs (about 20 s) and writes docs/figures/forgetting_{light,dark}.png.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import clbench

FIGURES = Path(__file__).parents[1] / "docs/figures"
RUNS = {
    "fine-tuning": ["strategy=finetune"],
    "EWC, lam=1e5": ["strategy=ewc", "lam=1e5"],
}
THEMES = {"light": ("#ffffff", "#1f2328", "#d1d9e0"), "dark": ("#0d1117", "#f0f6fc", "#3d444d")}
"""Name -> background, text and grid, as on GitHub."""
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")  # Paul Tol's bright scheme


def main() -> None:
    with TemporaryDirectory() as folder:
        matrices = {
            title: np.array(clbench.run(options, Path(folder) / title)["accuracy_matrix"])
            for title, options in RUNS.items()
        }
    for theme in THEMES:
        file = FIGURES / f"forgetting_{theme}.png"
        figure = draw(matrices, *THEMES[theme])
        FigureCanvasAgg(figure).print_png(file)
        print(file)


def draw(matrices: dict[str, np.ndarray], background: str, text: str, grid: str) -> Figure:
    """Return one panel per run: a line per task, from the task at which it was learned."""
    figure = Figure(figsize=(9, 3.4), dpi=160, layout="constrained", facecolor=background)
    panels = figure.subplots(1, len(matrices), sharey=True)
    for axes, (title, r) in zip(panels, matrices.items(), strict=True):
        tasks = len(r)
        for j in range(tasks):
            line = {"color": COLOURS[j % len(COLOURS)], "marker": "o", "markersize": 4, "linewidth": 2}
            axes.plot(range(j + 1, tasks + 1), r[j:, j], **line, label=f"task {j + 1}")
        axes.set_facecolor(background)
        axes.set_title(f"{title}: average accuracy {r[-1].mean():.3f}", color=text, fontsize=11)
        axes.set_xlabel("after training task", color=text)
        axes.set_xticks(range(1, tasks + 1))
        axes.tick_params(colors=text)
        axes.grid(color=grid, linewidth=0.6)
        for spine in axes.spines.values():
            spine.set_color(grid)
    panels[0].set_ylabel("test accuracy", color=text)
    legend = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    for label in legend.get_texts():
        label.set_color(text)
    return figure


if __name__ == "__main__":
    main()
