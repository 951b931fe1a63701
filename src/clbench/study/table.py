"""The table of a study in Markdown, LaTeX, CSV and JSON: a line per method and a column per metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from clbench.config.display import text_table
from clbench.report.tables import escape_tex, guard_formula
from clbench.study.overview import overview_table, overview_tex, terminal_overview
from clbench.study.plan import overrides_of

MARKS = {"match": "✓", "differs": "✗", "undecided": "?"}

MATCHES = (
    "A number matches if it differs from a published mean by at most two standard errors of the difference, "
    "2 √(se² + se_published²), or from a single published run by at most two of our standard deviations."
)


def methods(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the displayed name and the selection of each different set of final runs of a row.

    Two rules that choose the same runs give one method.
    """
    groups: dict[str, dict[str, Any]] = {}
    for selection in row["selections"]:
        groups.setdefault(str(selection["config_hashes"]), selection)
    for group in groups.values():
        by = "validation data" if group["by"] and group["by"].startswith("validation.") else "test data"
        yield row["name"] + (f" (chosen on {by})" if len(groups) > 1 else ""), group


def records(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one record per method: the chosen options, the number of runs, and for each metric the mean, its standard error,
    the half-width of its 95 % interval, the published value and the verdict.
    """
    lines = []
    for row in found["rows"]:
        for name, selection in methods(row):
            n = next(iter(selection["metrics"].values()))["n"]
            line: dict[str, Any] = {
                "method": name,
                "options": " ".join(overrides_of(selection["point"])),
                "runs": n,
                "seconds_per_run": round(row["seconds"], 3),
            }
            for metric, number in selection["metrics"].items():
                published = number["published"] or {}
                line |= {
                    metric: number["mean"],
                    f"{metric} se": number["se"],
                    f"{metric} ci": number.get("interval"),
                }
                if found["compared"]:
                    line |= {f"{metric} published": published.get("value"), f"{metric} verdict": number["verdict"]}
            lines.append(line)
    return lines


def to_csv(found: dict[str, Any]) -> str:
    """Return the table in CSV with full precision. A text that a spreadsheet would execute begins with a single quote."""
    lines = records(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: guard_formula(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def to_tex(found: dict[str, Any]) -> str:
    """Return the table as a booktabs table for ``input`` in a LaTeX document."""
    if "parts" in found:
        return overview_tex(found)
    lines = [
        f"% {' '.join(found['title'].split())}: mean and standard error over runs; requires \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{lr{'r' * len(found['metrics'])}}}",
        "\\toprule",
        " & ".join(["method", "runs", *map(escape_tex, found["metrics"])]) + r" \\",
        "\\midrule",
    ]
    for row in found["rows"]:
        for name, selection in methods(row):
            numbers = [selection["metrics"][metric] for metric in found["metrics"]]
            cells = [f"${value_text(number['mean'], number['se']).replace('±', chr(92) + 'pm')}$" for number in numbers]
            lines.append(" & ".join([escape_tex(name), str(numbers[0]["n"]), *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def table_with_legend(found: dict[str, Any]) -> list[str]:
    """Return the lines of the table in Markdown with a legend."""
    if "parts" in found:
        return markdown_table(overview_table(found))
    verdicts = {number["verdict"] for row in found["rows"] for number in row["selections"][0]["metrics"].values()}
    legend = "Mean ± standard error over seeds."
    if verdicts != {None}:
        legend += " The second line of a cell is the published value: ✓ matches, ✗ differs"
        legend += f"{', ? is undecided (one run)' if 'undecided' in verdicts else ''}. {MATCHES}"
    rows = [
        [name, *(_cell(selection["metrics"][metric]) for metric in found["metrics"])]
        for row in found["rows"]
        for name, selection in methods(row)
    ]
    return [legend, "", *markdown_table((["method", *found["metrics"]], rows))]


def terminal_table(found: dict[str, Any]) -> Table:
    """Return the table for the terminal."""
    if "parts" in found:
        return terminal_overview(found)
    table = text_table("method", "options", "runs", *found["metrics"])
    for row in found["rows"]:
        for name, selection in methods(row):
            numbers = [selection["metrics"][metric] for metric in found["metrics"]]
            cells = [f"{value_text(n['mean'], n['se'])} {MARKS.get(n['verdict'], '')}".rstrip() for n in numbers]
            point = " ".join(overrides_of(selection["point"]))
            table.add_row(*map(Text, (name, point, str(numbers[0]["n"]), *cells)))
    return table


def markdown_table(table: tuple[Sequence[str], Sequence[Sequence[str]]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def value_text(mean: float, se: float | None) -> str:
    """Return a mean with its standard error as text."""
    return f"{mean:.4f}" + ("" if se is None else f" ± {se:.4f}")


def _cell(number: dict[str, Any]) -> str:
    ours, published = value_text(number["mean"], number["se"]), number["published"]
    theirs = f"<br>*{value_text(published['value'], published['se'])}* {MARKS[number['verdict']]}" if published else ""
    return (ours + theirs).replace("± ", "±\N{NO-BREAK SPACE}")
