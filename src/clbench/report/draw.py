"""All figures of one setting: drawn, written to files, and as html for the page."""

from __future__ import annotations

from pathlib import Path

from clbench.report import figures, figures_lam, figures_tasks
from clbench.report.section import Setting
from clbench.report.style import Colours, drawing, inline, save


def draw(setting: Setting, colours: Colours, folder: Path, prefix: str) -> dict[str, str]:
    """``folder``/``prefix``NAME.png and .svg of each figure there is something to draw for; returns html by NAME."""
    cells, rows, runs = setting.cells, setting.rows, setting.runs
    with drawing():
        drawn = {
            "ranking": figures.ranking(runs, rows, colours),
            "lam_curves": figures_lam.lam_curves(cells, colours),
            "over_tasks": figures_tasks.over_tasks(runs, rows, colours),
            "tradeoff": figures.tradeoff(cells, colours),
            "matrices": figures_tasks.matrices(runs, rows),
        }
    return {
        name: inline(save(made.figure, folder / f"{prefix}{name}"), made.label, made.titles)
        for name, made in drawn.items()
        if made is not None
    }
