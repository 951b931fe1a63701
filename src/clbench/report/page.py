"""Context of the page as plain data, and its rendering by templates. Every number is also in summary.csv."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pandas import DataFrame, isna

from clbench.metrics.quality import ACCURACY, QUALITIES, Quality
from clbench.metrics.registry import metrics_of, records_of
from clbench.report.benchmark import count_noun
from clbench.report.html_tables import Cell, Heading, Row, Table
from clbench.report.provenance import count_commands, count_versions, find_missing_runs
from clbench.report.style import COLOURS, DARK, REFERENCE_COLOURS, REFERENCE_DARK, VARIABLES
from clbench.report.summary import SETUP_KEYS
from clbench.runs.names import printable
from clbench.runs.read import NOT_SELECTED

MAX_COMMANDS = 20
MAX_LISTED = 200
"""Largest number of rows of each kind in the table of failed and missing runs."""


def make_environment() -> Environment:
    """Return the environment of the templates. Every value is escaped, and an undefined name is an error."""
    return Environment(
        loader=PackageLoader("clbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(context: dict[str, Any]) -> str:
    """Return the HTML of the page, a single file without external resources."""
    return make_environment().get_template("page.html").render(context)


def page_context(title: str, note: str, runs: DataFrame, sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the context of the template ``page.html``.

    Args:
        title: Title of the page.
        note: Date and source folders of the report.
        runs: All runs, from ``read``.
        sections: Context of each benchmark, from ``section_context``.
    """
    missing = find_missing_runs(runs)
    return {
        "title": title,
        "note": note,
        "colours": colour_variables(),
        "counts": run_counts(runs),
        "excluded_counts": excluded_counts(runs, len(missing)),
        "sections": sections,
        "failures": failures_card(runs, missing),
        "warnings": warnings_table(runs),
        "commands": commands_context(runs),
        "versions": versions_card(runs),
        "definitions": [column_definitions(QUALITIES[name], runs) for name in runs.quality.dropna().unique()],
    }


def column_definitions(quality: Quality, runs: DataFrame) -> dict[str, Any]:
    """Return the definitions of R and of the columns of benchmarks of ``quality``."""
    metrics = records_of(quality, metrics_of(runs.extra_metrics))
    if quality == ACCURACY:
        scale = "Accuracies are fractions."
    else:
        scale = f"{quality.label.capitalize()}: {quality.meaning}; {quality.direction} is better."
    return {
        "matrix": f"R[i][j] is the test {quality.label} on task j after training task i, for T tasks. {scale}",
        "columns": [{"heading": metric.heading, "meaning": metric.definition} for metric in metrics.values()],
    }


def colour_variables() -> dict[str, dict[str, str]]:
    """Return the CSS variables of the figures' colours in light and dark mode."""
    names = [VARIABLES[colour] for colour in (*COLOURS, *REFERENCE_COLOURS.values())]
    return {
        "light": dict(zip(names, (*COLOURS, *REFERENCE_COLOURS.values()), strict=True)),
        "dark": dict(zip(names, (*DARK, *REFERENCE_DARK.values()), strict=True)),
    }


def run_counts(runs: DataFrame) -> list[dict[str, str]]:
    """Return the numbers of complete runs, of setups and of seeds."""
    complete = runs[runs.status == "complete"]
    counts = {
        "complete run": len(complete),
        "setup": complete.groupby(SETUP_KEYS).ngroups,
        "seed": complete.seed.nunique(),
    }
    pairs = [count_noun(number, noun).split(" ", 1) for noun, number in counts.items()]
    return [{"number": number, "noun": noun} for number, noun in pairs]


def excluded_counts(runs: DataFrame, missing: int) -> list[dict[str, str]]:
    """Return the number of runs that are excluded from the statistics, for each reason with such runs."""
    by_status = runs.status.value_counts()
    reasons = {"running": "unfinished"} | {
        name: name for name in (NOT_SELECTED, "failed", "partial", "inconsistent", "repeated")
    }
    counts = {reason: by_status.get(status, 0) for status, reason in reasons.items()} | {"missing": missing}
    return [{"number": str(number), "noun": reason} for reason, number in counts.items() if number]


def failures_card(runs: DataFrame, missing: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """Return the table of the runs that are excluded from the statistics with the reasons, or None if there are none.

    Args:
        runs: All runs, from ``read``.
        missing: Folder and overrides of the runs that do not exist, from ``find_missing_runs``.
    """
    bad = runs[runs.status != "complete"]
    listed = [(row.folder, row.setup, row.seed, row.status, row.problem) for row in bad.head(MAX_LISTED).itertuples()]
    reason = "requested by the sweep, but its folder does not exist"
    listed += [(folder, overrides, "", "missing", reason) for folder, overrides in missing[:MAX_LISTED]]
    if not listed:
        return None
    more = len(bad) + len(missing) - len(listed)
    note = "These runs are excluded from all statistics."
    return {
        "note": f"{note} {more:,} more are not listed." if more else note,
        "table": Table(
            [Heading(text, is_text=True) for text in ("folder", "setup", "seed", "status", "reason")],
            [Row([Cell("" if isna(value) else printable(str(value))) for value in line]) for line in listed],
            "sort wide",
        ),
    }


def warnings_table(runs: DataFrame) -> Table | None:
    """Return the warnings of the penalty monitor in complete runs, one row per kind, or None if there are none."""
    by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in runs[runs.status == "complete"].itertuples():
        for kind, text in row.warnings:
            by_kind[kind].append((row.setup, text))
    if not by_kind:
        return None
    headings = [
        Heading("kind", is_text=True),
        Heading("runs"),
        Heading("example", is_text=True),
        Heading("message", is_text=True),
    ]
    rows = [
        Row([Cell(kind), Cell(str(len(warnings))), Cell(warnings[0][0]), Cell(warnings[0][1])])
        for kind, warnings in by_kind.items()
    ]
    return Table(headings, rows, "wide")


def commands_context(runs: DataFrame) -> dict[str, Any]:
    """Return the first commands with their numbers of runs, and the number of further commands."""
    commands = [{"command": text, "runs": count_noun(number, "run")} for text, number in count_commands(runs).items()]
    return {"listed": commands[:MAX_COMMANDS], "more": f"{max(len(commands) - MAX_COMMANDS, 0):,}"}


def versions_card(runs: DataFrame) -> dict[str, Any]:
    """Return the table of package versions, with a note if runs of different versions are averaged."""
    versions = count_versions(runs)
    rows = [
        Row([Cell(package), Cell(_list_versions(counts) if len(counts) > 1 else next(iter(counts)))])
        for package, counts in versions.items()
    ]
    mixed = ", ".join(package for package, counts in versions.items() if len(counts) > 1)
    return {
        "note": f"Runs with different versions of {mixed} are averaged together." if mixed else "",
        "table": Table([Heading("package", is_text=True), Heading("version", is_text=True)], rows, "plain"),
    }


def _list_versions(counts: dict[str, int]) -> str:
    return ", ".join(f"{version} ({count_noun(number, 'run')})" for version, number in counts.items())
