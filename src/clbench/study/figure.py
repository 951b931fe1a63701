"""Figure of a study: a panel per metric with a line per row, and the tuned rows along their grids."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clbench.study.figure_of_parts import figure_of_parts

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#68707b")
"""Colours of Okabe and Ito, for colour-blind readers."""

MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
SPREAD = 2  # half length of an error bar, in standard errors (standard deviations if one run is published)
COLUMNS = 3  # panels next to each other
LINE = 0.23  # height of a row in inches
CURVES = 3.4  # height of a panel of curves in inches

Row = dict[str, Any]


def figure(found: dict[str, Any]) -> Figure:
    """Return the figure of a study, the content of figure.png."""
    if "parts" in found:
        return figure_of_parts(found)
    metrics, rows = list(found["metrics"]), sorted_rows(found)
    blocks = [metrics[k : k + COLUMNS] for k in range(0, len(metrics), COLUMNS)]
    curves = panels_of_curves(found)
    curve_blocks = [curves[k : k + 2] for k in range(0, len(curves), 2)]
    heights = [0.7 + LINE * (len(rows) + 1)] * len(blocks) + [CURVES] * len(curve_blocks)
    whole = Figure(figsize=(9.5, sum(heights) + 0.4), layout="constrained")
    whole.suptitle(fill(_plain(found["title"]), 90), fontsize=11)
    parts = iter(whole.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for block in blocks:
        panels = next(parts).subplots(1, len(block), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, block, strict=True):
            _values(axes, rows, metric)
            axes.set_xlabel(fill(_legend(rows, metric), 120 // len(block)), fontsize=7)
            for y in range(1, len(rows)):
                if _group(rows[y], found) != _group(rows[y - 1], found):
                    axes.axhline(y - 0.5, color="black", linewidth=0.6)
        panels[0].set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows], fontsize=8)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for pair in curve_blocks:
        panels = next(parts).subplots(1, len(pair), squeeze=False)[0]
        for axes, (group, tuned) in zip(panels, pair, strict=True):
            _curves(axes, found, group, tuned)
    return whole


def sorted_rows(found: dict[str, Any]) -> list[Row]:
    """Return the rows by descending first metric, those of a group together: ``task, EWC`` is in the group ``task``."""
    metric = next(iter(found["metrics"]))
    groups: dict[str, list[Row]] = {}
    for row in found["rows"]:
        groups.setdefault(_group(row, found), []).append(row)
    return [
        row
        for rows in groups.values()
        for row in sorted(rows, key=lambda row: -row["selections"][0]["metrics"][metric]["mean"])
    ]


def panels_of_curves(found: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return the rows with a grid of one numeric option, by group and option, as many per panel as there are colours."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found["rows"]:
        if len(row["grid"]) == 1 and row["trials"] and _numeric(row):
            groups.setdefault((_group(row, found), *row["grid"]), []).append(row)
    at_once = len(COLOURS)
    return [(group, rows[k : k + at_once]) for (group, _), rows in groups.items() for k in range(0, len(rows), at_once)]


def _group(row: Row, found: dict[str, Any]) -> str:
    """Return the text before the first comma of a name, if several names begin with it, else nothing."""
    start = row["name"].partition(", ")[0]
    return start if sum(other["name"].startswith(f"{start}, ") for other in found["rows"]) > 1 else ""


def _values(axes: Axes, rows: list[Row], metric: str) -> None:
    """Draw a line per row: the seeds, our mean with its error bar, and the published value."""
    for y, row in enumerate(rows):
        number = row["selections"][0]["metrics"][metric]
        theirs = number["published"]
        spread = number["sd" if theirs and theirs["se"] is None else "se"] or 0
        seeds = row["selections"][0]["values"][metric]
        axes.plot(seeds, [y] * len(seeds), "|", color=COLOURS[0], alpha=0.45, markersize=8)
        axes.errorbar(number["mean"], y, xerr=SPREAD * spread, fmt="o", color=COLOURS[0], capsize=3, markersize=4.5)
        if theirs:
            error = SPREAD * theirs["se"] if theirs["se"] else None
            axes.errorbar(theirs["value"], y, xerr=error, fmt="D", color="black", mfc="none", capsize=3, markersize=8)
    axes.set_title(_plain(metric), fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(alpha=0.3)


def _legend(rows: list[Row], metric: str) -> str:
    """Return what the signs of a panel mean."""
    published = [each for row in rows if (each := row["selections"][0]["metrics"][metric]["published"])]
    single = " (± 2 sd if one run is published)" if any(each["se"] is None for each in published) else ""
    return f"dot: mean ± 2 se{single}; strokes: seeds{'; diamond: published' if published else ''}"


def _curves(axes: Axes, found: dict[str, Any], group: str, rows: list[Row]) -> None:
    """Draw the first metric along the grid of each row, with the chosen point as a ring and published values as diamonds."""
    metric = next(iter(found["metrics"]))
    (key,) = rows[0]["grid"]
    every_x: list[float] = []
    for number, row in enumerate(rows):
        colour = COLOURS[number]
        trials = (t for t in row["trials"][0]["points"] if metric in t["metrics"])
        points = sorted((t["point"][key], t["metrics"][metric]) for t in trials)
        if not points:
            continue
        x = [value for value, _ in points]
        every_x += x
        axes.errorbar(
            x,
            [n["mean"] for _, n in points],
            yerr=[SPREAD * (n["se"] or 0) for _, n in points],
            marker=MARKERS[number],
            linestyle=DASHES[number % len(DASHES)],
            markersize=4,
            capsize=2,
            color=colour,
            label=_plain(row["name"].removeprefix(f"{group}, ")),
        )
        chosen = row["selections"][0]["point"][key]
        for value, n in points:
            if value == chosen:
                axes.plot(value, n["mean"], "o", color=colour, mfc="none", markersize=10)
        for theirs, value in row["published_curve"].get(metric, []):
            if min(x) <= theirs <= max(x):
                axes.plot(theirs, value, "D", color=colour, mfc="none")
    for name in dict.fromkeys(row["baseline"] for row in rows if row["baseline"]):
        level = next(row for row in found["rows"] if row["name"] == name)["selections"][0]["metrics"][metric]["mean"]
        axes.axhline(level, color="grey", linestyle=":", linewidth=1, label=_plain(name))
    if min(every_x, default=0) > 0 and max(every_x) / min(every_x) > 20:
        axes.set_xscale("log")
    axes.set_xlabel(
        _plain(f"{key} (ring: chosen{'; hollow diamond: published' if _have_curves(rows) else ''})"), fontsize=8
    )
    axes.set_ylabel(_plain(metric), fontsize=8)
    axes.set_title(_plain(group), fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _have_curves(rows: list[Row]) -> bool:
    return any(row["published_curve"] for row in rows)


def _plain(text: str) -> str:
    """Return a text for matplotlib, which would draw what is between two dollar signs as a formula."""
    return " ".join(text.split()).replace("$", r"\$")


def _numeric(row: Row) -> bool:
    return all(isinstance(v, int | float) for values in row["grid"].values() for v in values)
