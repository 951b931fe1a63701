"""The page: what a reader wants first comes first; every number is also in summary.csv."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from pandas import DataFrame, isna

from clbench.report.html import Cell, Head, card, counted, table
from clbench.report.statistics import CELL
from clbench.report.style import COLOURS, DARK, REFERENCE_COLOURS, REFERENCE_DARK, VARIABLES
from clbench.report.sweeps import commands, never_run
from clbench.report.tables import COLUMNS

COMMANDS = 20  # shown
LISTED = 200  # of each kind, in the table of failures; all are counted


def page(title: str, runs: DataFrame, sections: Sequence[str], names: Sequence[str], note: str) -> str:
    """The whole document.

    Args:
        title: of the page.
        runs: all of them, as ``read`` gives them.
        sections: html of each setting, from ``section``.
        names: of the settings, in the same order.
        note: how the report was made.
    """
    absent = never_run(runs)
    links = "".join(f'<li><a href="#s{i}">{escape(name)}</a></li>' for i, name in enumerate(names))
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title><style>{_css()}</style></head><body><main>",
            f"<header><h1>{escape(title)}</h1><p>{escape(note)}</p>{_chips(runs, len(absent))}</header>",
            f'<nav aria-label="settings"><ol>{links}</ol></nav>' if len(names) > 1 else "",
            *sections,
            troubles(runs, absent),
            cautions(runs),
            '<h2 id="made">How it was made</h2>',
            _made(runs),
            _meanings(),
            f"</main><script>{_asset('page.js')}</script></body></html>\n",
        )
    )


def troubles(runs: DataFrame, absent: Sequence[tuple[str, str]]) -> str:
    """Runs that do not count and why, and cells of sweeps without a folder; empty if there are none."""
    bad = runs[runs.status != "complete"]
    listed = [(row.folder, row.cell, row.seed, row.status, row.problem) for row in bad.head(LISTED).itertuples()]
    listed += [(folder, cell, "", "missing", "asked for by the sweep; no such run") for folder, cell in absent[:LISTED]]
    if not listed:
        return ""
    heads = [Head(text, is_text=True) for text in ("folder", "cell", "seed", "status", "why")]
    rows = [("", [Cell("" if isna(value) else escape(str(value))) for value in line]) for line in listed]
    more = len(bad) + len(absent) - len(listed)
    note = "None of these counts in any number above." + (f" {more:,} more are not listed." if more else "")
    return '<h2 id="failures">Failures and missing cells</h2>' + card(table(heads, rows, "sort wide"), note=note)


def cautions(runs: DataFrame) -> str:
    """What the doctor said of complete runs, each kind once; empty if it said nothing."""
    complete = runs[runs.status == "complete"]
    of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in complete.itertuples():
        for kind, text in row.warnings:
            of[kind].append((row.cell, text))
    if not of:
        return ""
    heads = [
        Head("kind", is_text=True),
        Head("runs"),
        Head("such as", is_text=True),
        Head("what it says", is_text=True),
    ]
    rows = [
        ("", [Cell(escape(kind)), Cell(str(len(said))), Cell(escape(said[0][0])), Cell(escape(said[0][1]))])
        for kind, said in of.items()
    ]
    return '<h2 id="warnings">Warnings</h2>' + card(
        table(heads, rows, "wide"), note="What the doctor said of runs that count."
    )


def _chips(runs: DataFrame, missing: int) -> str:
    complete = runs[runs.status == "complete"]
    good = {"complete run": len(complete), "cell": complete.groupby(CELL).ngroups, "seed": complete.seed.nunique()}
    chips = [f"<li>{counted(n, what, bold=True)}</li>" for what, n in good.items()]
    counts = runs.status.value_counts()
    bad = {"unfinished": "running", "failed": "failed", "repeated": "repeated"}
    wrong = {word: counts.get(status, 0) for word, status in bad.items()} | {"missing": missing}
    chips += [f'<li class="bad"><a href="#failures"><b>{n}</b> {word}</a></li>' for word, n in wrong.items() if n]
    return f'<ul class="chips">{"".join(chips)}</ul>'


def _made(runs: DataFrame) -> str:
    """Commands and versions."""
    made = commands(runs)
    said = [f"<pre>{escape(command)}</pre><p>{counted(n, 'run')}</p>" for command, n in made[:COMMANDS]]
    more = f"<p>and {len(made) - COMMANDS:,} more commands</p>" if len(made) > COMMANDS else ""
    versions: dict[str, Counter[str]] = defaultdict(Counter)
    for of in runs.versions.dropna():
        for package, version in of.items():
            versions[package][version] += 1
    rows = []
    for package, seen in versions.items():
        mixed = ", ".join(f"{version} ({counted(n, 'run')})" for version, n in seen.items())
        rows.append(("", [Cell(escape(package)), Cell(escape(mixed if len(seen) > 1 else next(iter(seen))))]))
    mixed_of = [package for package, seen in versions.items() if len(seen) > 1]
    note = f"Several versions of {', '.join(mixed_of)}: their runs stand in the same means." if mixed_of else ""
    heads = [Head("package", is_text=True), Head("version", is_text=True)]
    return card(*said, more, title="Commands") + card(table(heads, rows, "plain"), title="Versions", note=note)


def _meanings() -> str:
    """The columns, with their formulas."""
    items = [f"<dt>{escape(column.heading)}</dt><dd>{escape(column.meaning)}</dd>" for column in COLUMNS.values()]
    note = "R[i][j] is the test accuracy on task j after training task i, of T tasks. Accuracies are fractions."
    summary = "<details><summary>What the columns mean</summary>"
    return card(summary, f'<p class="note">{note}</p><dl>{"".join(items)}</dl></details>')


def _css() -> str:
    """The style sheet, with the colours of the figures on light and on dark."""
    keys = [*COLOURS, *REFERENCE_COLOURS.values()]
    text = _asset("page.css")
    for place, colours in (("LIGHT_COLOURS", keys), ("DARK_COLOURS", [*DARK, *REFERENCE_DARK.values()])):
        values = " ".join(f"{VARIABLES[key]}: {value};" for key, value in zip(keys, colours, strict=True))
        text = text.replace(place, values)
    return text


def _asset(name: str) -> str:
    return files("clbench.report").joinpath(name).read_text()
