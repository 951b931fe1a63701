"""Style of the figures: light colours in files, and CSS variables for light and dark mode in the SVG of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from pandas import Series

from clbench.metrics.quality import ACCURACY, Quality
from clbench.runs.folder import atomically

Colours = Mapping[str, str]
FORMATS: dict[str, Any] = {
    "png": None,
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None},
}
"""Formats of figures, with metadata that are left out, so that equal figures are equal files."""

INK, MUTED, GRID, PAPER = "#1f2329", "#68707b", "#dfe3e8", "#fefefd"
COLOURS = ("#2463c9", "#cf6a00", "#1c8a4c", "#7d4bd1", "#c92a3f", "#0b8599", "#b83280", "#77790a", "#8f5b2e", "#3d4fb8")
DARK = ("#79aefc", "#ffad5c", "#5fd38d", "#bd9bff", "#ff8589", "#4fd0e0", "#f78cc6", "#d3d05c", "#d3a172", "#99a6ff")
REFERENCE_COLOURS = {
    "finetune": "#8a919b",
    "joint": "#3b424c",
    "joint_from_scratch": "#4b525c",
    "independent": "#5b626c",
}
REFERENCE_DARK = {"finetune": "#8b949e", "joint": "#e6e9ee", "joint_from_scratch": "#d3d8df", "independent": "#b9c0c9"}

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    **{colour: f"--c{i}" for i, colour in enumerate(COLOURS)},
    **{colour: f"--c-{name.replace('_', '-')}" for name, colour in REFERENCE_COLOURS.items()},
}

WIDTH = 6.4  # default width of a figure in inches
NARROW = 5  # below this width, text has 8 pt and lines are thinner, as in the column of a paper
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))

RC: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType fonts, which publishers ask for
    "figure.figsize": (WIDTH, 3.5),
    "svg.hashsalt": "clbench",
    "figure.facecolor": "none",
}


RC_NARROW: Any = {
    **RC,
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize"), 8),
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
}


class LabelledFigure(NamedTuple):
    """A figure, its label for screen readers, and the titles of the markers of its lines by gid."""

    figure: Figure
    label: str
    titles: dict[str, list[str]]


def average_label(quality: Quality, *details: str) -> str:
    r"""Return the label of an axis of average values, with a line break because names of qualities may be long.

    >>> from clbench.metrics.quality import ACCURACY, QUALITIES
    >>> average_label(ACCURACY, "test")
    'average accuracy (test)'
    >>> average_label(QUALITIES["bits_per_byte"], "test")
    'average bits per byte\\n(test, lower is better)'
    """
    details = (*details, *(() if quality.higher_is_better else ("lower is better",)))
    space = " " if quality == ACCURACY else "\n"
    return f"average {quality.label}" + (f"{space}({', '.join(details)})" if details else "")


def is_near(chance: float, accuracy: Series) -> bool:
    """Return whether chance is defined, and close enough to be drawn without compressing the accuracies."""
    return bool(accuracy.min() - chance <= max(1.2 * (accuracy.max() - accuracy.min()), 0.1))


def wrap(text: str, width: int) -> str:
    """Break ``text`` into lines of at most ``width`` characters. Matplotlib would set the text between two ``$`` as a formula."""
    return fill(text, width, break_on_hyphens=False).replace("$", r"\$")


def width() -> float:
    """Return the width in inches of the figures that are drawn now, see ``report_style``."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def characters(number: int) -> int:
    """Return how many characters fit where ``number`` fit in a figure of the default width."""
    return int(max(12, number * width() / WIDTH * RC["font.size"] / matplotlib.rcParams["font.size"]))


def line_style(number: int, lines: int) -> dict[str, Any]:
    """Return marker, dashes and width of one of several lines, which differ without colour.

    Earlier lines are thicker, so that all lines that lie on each other are visible.
    """
    later = (lines - 1 - number) / max(lines - 1, 1)  # share of the lines that are drawn over this one
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "ls": DASHES[number % len(DASHES)],
        "lw": matplotlib.rcParams["lines.linewidth"] * (1 + 1.6 * later),
    }


def add_legend_below(figure: Figure) -> None:
    """Add a legend below the axes and increase the height of the figure accordingly."""
    named = {
        wrap(label, characters(65)): handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if not named:
        return
    columns = min(len(named), max(1, characters(72) // (max(map(len, named)) + 7)))
    extra_lines = sum(label.count("\n") for label in named)  # only with a single column
    lines = -(-len(named) // columns) + extra_lines
    figure.set_figheight(figure.get_figheight() + 0.022 * matplotlib.rcParams["legend.fontsize"] * lines)
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns)


@contextmanager
def report_style(width: float = WIDTH) -> Iterator[None]:
    """Apply the style of reports to figures in this context, which are ``width`` inches wide."""
    with matplotlib.rc_context(RC if width >= NARROW else RC_NARROW):
        matplotlib.rcParams["figure.figsize"] = (width, max(2.4, 3.5 * width / WIDTH))
        yield


def assign_colours(strategies: Iterable[str]) -> dict[str, str]:
    """Return a colour per strategy, in the order of names. References and fine-tuning are grey."""
    names = sorted(set(strategies))
    coloured = [name for name in names if name not in REFERENCE_COLOURS]
    return {**REFERENCE_COLOURS, **{name: COLOURS[i % len(COLOURS)] for i, name in enumerate(coloured)}}


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``path``.png, .svg and .pdf with a white background. The PDF contains its fonts."""
    dpi = 170 if width() >= NARROW else 300
    for ending, metadata in FORMATS.items():
        save = partial(figure.savefig, format=ending, dpi=dpi, facecolor="white", metadata=metadata)
        atomically(path.with_name(f"{path.name}.{ending}"), save)
        figure.set_layout_engine("none")  # the layout is final


def svg_of(figure: Figure) -> str:
    """Return the SVG of a figure without a background."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=FORMATS["svg"])
    return text.getvalue()


def inline_svg(svg: str, label: str, titles: Mapping[str, Sequence[str]], prefix: str) -> str:
    """Convert an SVG of matplotlib for the page: remove the header and use the page's colours and font.

    Args:
        svg: Return value of ``svg_of``.
        label: Text for screen readers.
        titles: Titles of the markers of each line in order, by gid.
        prefix: Prefix of every id, unique on the page.
    """
    body = svg[svg.index("<svg ") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body).groups()  # type: ignore[union-attr]
    opening = (
        f'<svg viewBox="0 0 {width} {height}" style="--w:{float(width):.0f}" role="img" aria-label="{escape(label)}">'
    )
    body = re.sub(r"<svg [^>]*>", opening, body, count=1)
    for gid, texts in titles.items():
        body = _add_titles(body, gid, texts)
    body = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", body)  # equal images have equal ids
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub(r"font(-family)?: ([\d.]+px )?[^;\"]*'DejaVu Sans'[^;\"]*", _page_font, body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return body


def _page_font(match: re.Match[str]) -> str:
    weight = "font-weight: 700; " if "bold" in match[0] or "700" in match[0] else ""
    size = re.search(r"([\d.]+px)", match[0])
    return f"{weight}font-size: {size[1]}" if size else f"{weight}font-family: inherit"


def _add_titles(body: str, gid: str, titles: Sequence[str]) -> str:
    """Add a title to each marker (``<use .../>``) in the group ``gid``."""
    start = body.find(f'<g id="{gid}">')  # an empty line is <g id="..."/>
    if start < 0:
        return body
    end = body.find('<g id="', start + 1)
    part, texts = body[start:end], iter(titles)
    part = re.sub(r"<use ([^>]*)/>", lambda m: f"<use {m[1]}><title>{escape(next(texts, ''))}</title></use>", part)
    return body[:start] + part + body[end:]
