"""Tables of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pandas import DataFrame

from clbench.report.html import Cell, Head, table
from clbench.report.statistics import HIGHER_IS_BETTER, is_reference
from clbench.report.style import VARIABLES
from clbench.report.tables import COLUMNS, best, filled, fraction, mean_and_half
from clbench.runs.names import said


def strategies(rows: DataFrame, guess: float, colours: Mapping[str, str]) -> str:
    """The rows shown first, and chance."""
    names, bold = filled(rows), best(rows)
    heads = [
        Head("strategy", is_text=True),
        *([Head("lam")] if rows.lam.notna().any() else []),
        Head("seeds"),
        *_heads(names),
    ]
    body = []
    for row in rows.itertuples():
        cells = [Cell(_name(row, colours)), *([_lam(row.lam)] if rows.lam.notna().any() else []), Cell(str(row.seeds))]
        cells += [_metric(row, name, bold.get(name) == row.cell) for name in names]
        body.append(("reference" if is_reference(row.strategy) else "", cells))
    chance = [Cell("chance"), *([Cell("", math.nan)] if rows.lam.notna().any() else []), Cell("", math.nan)]
    chance += [Cell(fraction(guess), guess) if name == "average_accuracy" else Cell("", math.nan) for name in names]
    return table(heads, [*body, ("reference", chance)])


def all_cells(cells: DataFrame, colours: Mapping[str, str]) -> str:
    """Every cell; those whose lam was chosen are tinted."""
    names = filled(cells)
    heads = [Head("strategy", is_text=True), Head("lam"), Head("seeds"), *_heads(names)]
    return table(
        heads,
        (
            (
                "picked" if row.chosen and row.lams > 1 else "",
                [
                    Cell(_name(row, colours)),
                    _lam(row.lam),
                    Cell(str(row.seeds)),
                    *(_metric(row, name, False) for name in names),
                ],
            )
            for row in cells.itertuples()
        ),
    )


def lams(cells: DataFrame) -> str:
    """The lam chosen on validation beside the test oracle, what each gives on test data."""
    heads = [
        Head("variant", is_text=True),
        Head("lam chosen on validation"),
        Head("test accuracy there"),
        Head("lam, test oracle"),
        Head("test accuracy there (oracle)"),
        Head("oracle - chosen", "what choosing on test data would have added"),
    ]
    rows = []
    for variant, of in cells[cells.lams > 1].groupby("variant"):
        full = of[of.seeds == of.seeds.max()]
        oracle = full.loc[full.average_accuracy.idxmax()]
        if full.validation_average_accuracy.notna().any():
            mine = full.loc[full.validation_average_accuracy.idxmax()]
            gap = oracle.average_accuracy - mine.average_accuracy
            first = [_lam(mine.lam), _metric(mine, "average_accuracy", False)]
            last = Cell(fraction(gap), gap)
        else:
            first, last = [Cell("no validation data", math.nan), Cell("", math.nan)], Cell("", math.nan)
        rows.append(
            (
                "",
                [
                    Cell(escape(str(variant))),
                    *first,
                    _lam(oracle.lam),
                    _metric(oracle, "average_accuracy", False),
                    last,
                ],
            )
        )
    return table(heads, rows)


def differences(pairs: DataFrame) -> str:
    """Paired differences; bold where the interval leaves out 0."""
    heads = [
        Head("a", is_text=True),
        Head("b", is_text=True),
        Head("seeds"),
        Head("average accuracy, a - b", ascending=False),
        Head("p"),
        Head("forgetting, a - b"),
        Head("p"),
    ]
    rows = []
    for row in pairs.itertuples():
        numbers = []
        for name in ("average_accuracy", "forgetting"):
            mean, half, p = (getattr(row, f"{name}{end}") for end in ("", "_ci", "_p"))
            sure = abs(mean) > half
            text = (
                ""
                if math.isnan(mean)
                else f"{'<b>' if sure else ''}{mean:+.3f}{'</b>' if sure else ''}<i>± {half:.3f}</i>"
            )
            numbers += [Cell(text, mean), Cell("" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}", p)]
        rows.append(("", [Cell(escape(row.a)), Cell(escape(row.b)), Cell(str(row.seeds)), *numbers]))
    return table(heads, rows)


def _heads(names: Sequence[str]) -> list[Head]:
    return [
        Head(COLUMNS[name].heading, COLUMNS[name].meaning, ascending=name not in HIGHER_IS_BETTER) for name in names
    ]


def _name(row: Any, colours: Mapping[str, str]) -> str:
    options = row.variant.removeprefix(row.strategy).strip()
    tag = '<span class="tag">reference</span>' if is_reference(row.strategy) else ""
    small = f" <small>{escape(options)}</small>" if options else ""
    swatch = f'<span class="swatch" style="background:var({VARIABLES[colours[row.strategy]]})"></span>'
    return f"{swatch}{escape(row.strategy)}{small}{tag}"


def _lam(lam: float) -> Cell:
    return Cell("-" if math.isnan(lam) else said(float(lam)), lam)


def _metric(row: Any, name: str, bold: bool) -> Cell:
    mean, half = mean_and_half(row, name)
    return Cell((f"<b>{mean}</b>" if bold else mean) + (f"<i>± {half}</i>" if half else ""), getattr(row, name))
