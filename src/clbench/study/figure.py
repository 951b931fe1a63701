"""Figure of a study: measured and published values of every row, and a panel for every grid of a single option."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clbench.study.figure_of_parts import figure_of_parts

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # of Okabe and Ito, for colour-blind readers
SPREAD = 2  # half length of an error bar, in standard errors (standard deviations if one run is published)
GAP = 0.7  # vertical space between two rows, in lines
PANEL = 3.6  # height of a grid's panel in inches


def figure(found: dict[str, Any]) -> Figure:
    """Return the figure of a study, the content of figure.png."""
    if "parts" in found:
        return figure_of_parts(found)
    curves = [row for row in found["rows"] if len(row["grid"]) == 1 and row["trials"] and _numeric(row)]
    scales = _scales(found)
    heights = [1.3 + 0.25 * sum(len(_shown(row, scale)) + GAP for row in found["rows"]) for scale in scales]
    columns = min(2, len(curves))
    if curves:
        heights.append(PANEL * -(-len(curves) // columns))
    whole = Figure(figsize=(9.5, sum(heights)), layout="constrained")
    whole.suptitle(fill(_plain(found["title"]), 90), fontsize=11)
    parts = whole.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, scale in zip(parts, scales, strict=False):
        _rows(part.add_subplot(), found, scale)
    if curves:
        panels = parts[-1].subplots(-(-len(curves) // columns), columns, squeeze=False).flatten()
        for axes, row in zip(panels, curves, strict=False):
            _curve(axes, row, found, next(scale for scale in scales if next(iter(found["metrics"])) in scale))
        for axes in panels[len(curves) :]:
            axes.axis("off")
    return whole


def _scales(found: dict[str, Any]) -> list[list[str]]:
    """Group the metrics by axis: those between -1 and 1 share one, every other has its own."""
    numbers = [row["selections"][0]["metrics"] for row in found["rows"]]
    shares = [m for m in found["metrics"] if all(abs(number[m]["mean"]) <= 1 for number in numbers)]
    return [*([shares] if shares else []), *([m] for m in found["metrics"] if m not in shares)]


def _rows(axes: Axes, found: dict[str, Any], scale: list[str]) -> None:
    """Draw a line per row and metric: the seeds, our mean with its error bar, and the published value."""
    metrics = list(found["metrics"])
    y, ticks, labels = 0.0, [], []
    for row in found["rows"]:
        for metric in _shown(row, scale):
            number = row["selections"][0]["metrics"][metric]
            theirs = number["published"]
            colour = COLOURS[metrics.index(metric) % len(COLOURS)]
            spread = number["sd" if theirs and theirs["se"] is None else "se"] or 0
            seeds = row["selections"][0]["values"][metric]
            axes.plot(seeds, [y] * len(seeds), "|", color=colour, alpha=0.45, markersize=9)
            axes.errorbar(number["mean"], y, xerr=SPREAD * spread, fmt="o", color=colour, capsize=3, markersize=5)
            if theirs:
                error = SPREAD * theirs["se"] if theirs["se"] else None
                axes.errorbar(
                    theirs["value"], y, xerr=error, fmt="D", color="black", mfc="none", capsize=3, markersize=8
                )
            ticks.append(y)
            labels.append(_plain(f"{row['name']}: {metric}" if len(metrics) > 1 else row["name"]))
            y += 1
        y += GAP
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(y - GAP, -1)
    numbers = (number for row in found["rows"] for number in row["selections"][0]["metrics"].values())
    published = [number["published"] for number in numbers if number["published"]]
    single = any(theirs["se"] is None for theirs in published)
    legend = f"dot: our mean ± 2 se{' (± 2 sd if one run is published)' if single else ''}; strokes: seeds"
    axes.set_xlabel(legend + ("; diamond: published" if published else ""), fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _curve(axes: Axes, row: dict[str, Any], found: dict[str, Any], scale: list[str]) -> None:
    """Draw the metrics along a grid, with dashed lines for the baseline and diamonds for published values."""
    (key,) = row["grid"]
    points = sorted((t for t in row["trials"][0]["points"] if t["metrics"]), key=lambda t: t["point"][key])
    x = [trial["point"][key] for trial in points]
    baseline = next((other for other in found["rows"] if other["name"] == row["baseline"]), None)
    for metric, colour in zip(scale, COLOURS, strict=False):
        if not all(metric in trial["metrics"] for trial in points):
            continue
        numbers = [trial["metrics"][metric] for trial in points]
        means, errors = [n["mean"] for n in numbers], [SPREAD * (n["se"] or 0) for n in numbers]
        axes.errorbar(x, means, yerr=errors, marker="o", markersize=4, capsize=2, color=colour, label=_plain(metric))
        if baseline is not None:
            level = baseline["selections"][0]["metrics"][metric]["mean"]
            axes.axhline(level, color=colour, linestyle="--", linewidth=1)
        for theirs, value in row["published_curve"].get(metric, []):
            if min(x) <= theirs <= max(x):
                axes.plot(theirs, value, "D", color=colour, mfc="none")
    if min(x) > 0 and max(x) / min(x) > 20:
        axes.set_xscale("log")
    axes.axvline(row["selections"][0]["point"][key], color="grey", linewidth=0.8, linestyle=":")
    dashed = f"; dashed: {row['baseline']}" if baseline else ""
    axes.set_xlabel(_plain(f"{key} (dotted: chosen{dashed})"), fontsize=8)
    axes.set_title(_plain(row["name"]), fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _shown(row: dict[str, Any], scale: list[str]) -> list[str]:
    """Return the published metrics of a row on one axis, or all metrics on that axis if none is published."""
    metrics = row["selections"][0]["metrics"]
    shown = [metric for metric, number in metrics.items() if number["published"]] or list(metrics)
    return [metric for metric in shown if metric in scale]


def _plain(text: str) -> str:
    """Return a text for matplotlib, which would draw what is between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def _numeric(row: dict[str, Any]) -> bool:
    return all(isinstance(v, int | float) for values in row["grid"].values() for v in values)
