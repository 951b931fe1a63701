"""Figure of a study with parts: the values of every method in each part, and its mean rank with the critical difference."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clbench.metrics.interval import half_width
from clbench.runs.names import REFERENCES
from clbench.study.ranks import all_ranks, by_seed, competing, critical_difference, in_part, methods_of

POINT, OWN, REFERENCE = "#0072b2", "#d55e00", "#68707b"  # blue and vermilion of Okabe and Ito, for colour-blind readers


def figure_of_parts(found: Mapping[str, Any]) -> Figure:
    """Return the figure, with a line per method, best mean rank at the top, and one panel per part and for the ranks."""
    methods, parts = methods_of(found), found["parts"]
    whole = Figure(figsize=(2.2 + 2.5 * (len(parts) + 1), 1.3 + 0.23 * len(methods)), layout="constrained")
    whole.suptitle(fill(" ".join(found["title"].split()), 90).replace("$", r"\$"), fontsize=11)
    panels = whole.subplots(1, len(parts) + 1, sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=False):
        _values(axes, found, part, methods)
    _ranks(panels[-1], found, methods)
    panels[0].set_yticks(range(len(methods)), [method.replace("$", r"\$") for method in methods], fontsize=8)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    for method, label in zip(methods, panels[0].get_yticklabels(), strict=True):
        label.set_color(_colour(found, method))
        label.set_fontweight("bold" if method == found.get("own") else "normal")
    return whole


def _values(axes: Axes, found: Mapping[str, Any], part: str, methods: list[str]) -> None:
    """Draw the seeds of every method as strokes, and the mean with its 95 % interval: a diamond for a reference."""
    metric, rows = next(iter(found["metrics"])), in_part(found, part)
    for y, method in enumerate(methods):
        if method not in rows:
            continue
        number, colour = rows[method]["selections"][0]["metrics"][metric], _colour(found, method)
        seeds = list(by_seed(rows[method], metric).values())
        axes.plot(seeds, [y] * len(seeds), "|", color=colour, alpha=0.45, markersize=7)
        half = float(half_width(number["sd"], number["n"])) if number["sd"] is not None else 0
        marker = "D" if method in REFERENCES else "o"
        axes.errorbar(number["mean"], y, xerr=half, fmt=marker, color=colour, capsize=2, markersize=4)
    axes.set_title(part.replace("$", r"\$"), fontsize=9)
    axes.set_xlabel(f"{metric}: mean, 95 % interval, seeds".replace("$", r"\$"), fontsize=7)
    _style(axes)


def _ranks(axes: Axes, found: Mapping[str, Any], methods: list[str]) -> None:
    """Draw the mean ranks with bars of half a critical difference to each side. The bar of the own or first method is a band."""
    ranks = all_ranks(found)
    half = critical_difference(len(competing(found)), len(next(iter(ranks.values())))) / 2
    for y, method in enumerate(methods):
        if method in ranks:
            axes.errorbar(
                fmean(ranks[method]), y, xerr=half, fmt="o", color=_colour(found, method), capsize=2, markersize=4
            )
    compared = found["own"] if found.get("own") in ranks else methods[0]
    centre = fmean(ranks[compared])
    axes.axvspan(centre - half, centre + half, color=_colour(found, compared), alpha=0.12, linewidth=0)
    axes.set_title(f"mean rank, all {len(found['parts'])} parts", fontsize=9)
    axes.set_xlabel("bars that do not overlap differ\n(Nemenyi test, .05)", fontsize=7)
    _style(axes)


def _style(axes: Axes) -> None:
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.grid(alpha=0.3)


def _colour(found: Mapping[str, Any], method: str) -> str:
    return OWN if method == found.get("own") else REFERENCE if method in REFERENCES else POINT
