"""Figures of accuracy, lam and forgetting, of the rows over seeds of one setting."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from clbench.report.statistics import is_reference, pareto
from clbench.report.style import MUTED, PAPER, WIDTH, Colours, Drawn, is_near, legend_below, wrapped
from clbench.report.tables import number

NAME = 42  # characters of a line beside a dot: more leave no room for what is drawn


def ranking(runs: DataFrame, rows: DataFrame, colours: Colours) -> Drawn:
    """Average accuracy of each row, best at the top: mean, Student interval, and a small dot per seed."""
    rows = rows.sort_values("average_accuracy", ignore_index=True)
    names = [wrapped(cell, NAME) for cell in rows.cell]
    broken = max(name.count("\n") for name in names)  # lines of a name, less one
    figure = Figure(figsize=(WIDTH, max(0.34, 0.17 * (broken + 1)) * len(rows) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    titles = {}
    for y, row in enumerate(rows.itertuples()):
        colour = colours[row.strategy]
        seeds = runs[runs.cell == row.cell]
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
            f"{row.cell}, seed {s}: {a:.4f}" for s, a in zip(seeds.seed, seeds.average_accuracy, strict=True)
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
        titles[f"mean{y}"] = [f"{row.cell}: {number(row, 'average_accuracy')} over {row.seeds} seeds"]
    guess = next(iter(runs.chance))[-1]
    if is_near(guess, runs.average_accuracy):
        axes.axvline(guess, color=MUTED, ls=":", lw=1.2)
    axes.set(yticks=range(len(rows)), yticklabels=names, xlabel="average accuracy", ylim=(-0.6, len(rows) - 0.4))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return Drawn(figure, "Average accuracy of each strategy with its 95 % interval over seeds", titles)


def tradeoff(cells: DataFrame, colours: Colours) -> Drawn | None:
    """Forgetting against learning accuracy, a point per cell, with the Pareto front; rows chosen are filled."""
    cells = cells[cells.forgetting.notna()]
    if len(cells) < 2:
        return None
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.add_subplot()
    titles = {}
    for k, (strategy, of) in enumerate(cells.groupby("strategy")):
        for picked, faces in ((False, "none"), (True, colours[strategy])):
            some = of[of.chosen == picked]
            gid = f"cells{k}x{int(picked)}"
            axes.plot(
                some.learning_accuracy,
                some.forgetting,
                "D" if is_reference(strategy) else "o",
                mfc=faces,
                mec=PAPER if picked else colours[strategy],
                ms=9 if picked else 5.5,
                mew=1.2,
                alpha=1 if picked else 0.75,
                label=strategy if picked or not of.chosen.any() else None,
                gid=gid,
                zorder=3 + picked,
            )
            titles[gid] = [
                f"{row.cell}: learning accuracy {number(row, 'learning_accuracy')}, forgetting {number(row, 'forgetting')}"
                for row in some.itertuples()
            ]
    ordinary = cells[~cells.strategy.map(is_reference)].reset_index(drop=True)
    front = ordinary.iloc[pareto(ordinary.learning_accuracy, ordinary.forgetting)]
    axes.plot(front.learning_accuracy, front.forgetting, color=MUTED, ls=":", lw=1.5, zorder=2, label="Pareto front")
    axes.margins(0.07)
    axes.invert_yaxis()
    axes.set(xlabel="learning accuracy (better to the right)", ylabel="forgetting (better upwards)")
    legend_below(figure)
    return Drawn(figure, "Forgetting against learning accuracy with the Pareto front", titles)
