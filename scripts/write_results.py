"""Write the pages of the committed studies: ``python scripts/write_results.py [outputs/studies/NAME ...]``.

Copies the results of the given studies to results/, then writes results/NAME.{json,md,png} of every study there with the
current texts of conf/study, and docs/results.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from clbench.report.output import write_text
from clbench.runs.sweep_log import duration
from clbench.study.definition import Study
from clbench.study.overview import overview_table
from clbench.study.page import markdown, outcome, paragraphs, sentence
from clbench.study.parse import load, names
from clbench.study.table import MATCHES, markdown_table
from clbench.study.write import save_figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs/results.md"


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        write_text(RESULTS / f"{found['name']}.json", json.dumps(found, indent=1) + "\n")
    for file in sorted(RESULTS.glob("*.json")):
        found = with_texts(json.loads(file.read_text(encoding="utf-8")), load(file.stem.removesuffix("-full")))
        write_text(file, json.dumps(found, indent=1) + "\n")
        write_text(file.with_suffix(".md"), markdown(found, f"{file.stem}.png"))
        save_figure(found, file.with_suffix(".png"))
    write_text(PAGE, index([json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]))


def with_texts(found: dict[str, Any], study: Study) -> dict[str, Any]:
    """Return ``found`` with the title, source, text, findings and claims of ``study``."""
    findings = {row.name: row.findings.strip() for row in study.rows}
    texts = {"title": study.title, "source": study.source, "text": study.text}
    rows = [{**row, "findings": findings[row["name"]]} for row in found["rows"]]
    claims = [{**old, "text": new.text} for old, new in zip(found["claims"], study.claims, strict=True)]
    return {**found, **texts, "rows": rows, "claims": claims}


def index(all_found: list[dict[str, Any]]) -> str:
    """Return the page that shows all studies."""
    benchmarks = [found for found in all_found if "parts" in found]
    lines = [
        "# Results",
        "",
        "Each [study](studies.md) repeats a published protocol or one of the notes that this project started with, or is an",
        "experiment of its own. `clbench study --list` lists the studies and their cost.",
        "",
        *([] if not benchmarks else ["## Benchmark", ""]),
    ]
    for found in benchmarks:
        link = f"[{found['title']}](../results/{found['name']}.md)"
        lines += [f"{link}: {paragraphs(found['text'])[0]}", "", *sortable(overview_table(found)), ""]
    if benchmarks:
        lines += [
            "[Benchmark](benchmark.md) explains the columns, and how to compare your own strategy with these.",
            "",
        ]
    lines += ["## Studies", "", MATCHES, "", '<div class="cards">', ""]
    for found in all_found:
        page, picture = f"../results/{found['name']}.md", f"../results/{found['name']}.png"
        cost = f"{found['runs']} runs, {duration(found['seconds'])} on one core, commit {', '.join(found['commits'])}"
        lines += [
            '<div class="card">',
            "",
            f"[{found['title']}]({page})",
            "",
            f"[![{found['name']}]({picture})]({page})",
            "",
        ]
        lines += [
            f"{sentence(outcome(found))} {sentence(cost)}",
            "",
            "```bash",
            found["command"],
            "```",
            "",
            "</div>",
            "",
        ]
    lines += ["</div>", "", "The times were measured while other programs used the same machine."]
    if missing := [f"`{name}`" for name in names() if name not in [found["name"] for found in all_found]]:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join([*lines, "", "This page was written by `python scripts/write_results.py`.", ""])


def sortable(table: tuple[list[str], list[list[str]]]) -> list[str]:
    """Return the lines of a table that a reader sorts by a click on a heading."""
    return ['<div class="sortable">', "", *markdown_table(table), "", "</div>"]


if __name__ == "__main__":
    main(sys.argv[1:])
