"""Write the pages of the committed studies: ``python scripts/write_results.py [outputs/studies/NAME ...]``.

Copies the results of the given studies to results/, then writes results/NAME.{json,md,png} of every study there with the
current texts of conf/study, and docs/reproductions.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from clbench.report.output import write_text
from clbench.runs.sweep_log import duration
from clbench.study.definition import Study
from clbench.study.page import markdown, outcome, paragraphs
from clbench.study.parse import load, names
from clbench.study.table import MATCHES
from clbench.study.write import save_figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs/reproductions.md"


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
    lines = [
        "# Reproductions",
        "",
        "Each [study](studies.md) repeats a published protocol or one of the notes that this project started with, or is an",
        "experiment of its own. A linked page has the numbers, the findings and the command. `clbench study --list` lists the",
        "studies and their cost.",
        "",
        MATCHES,
        "",
        "| study | outcome | runs | time on one core | commit |",
        "|---|---|---|---|---|",
    ]
    for found in all_found:
        link = f"[{found['title']}](../results/{found['name']}.md)"
        numbers = [str(found["runs"]), duration(found["seconds"]), ", ".join(found["commits"])]
        lines.append(f"| {' | '.join([link, outcome(found), *numbers])} |")
    lines += ["", "The times were measured while other programs used the same machine."]
    if missing := [f"`{name}`" for name in names() if name not in [found["name"] for found in all_found]]:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    for found in all_found:
        name, link = found["name"], f"[Numbers and findings](../results/{found['name']}.md)"
        lines += ["", f"## {found['title']}", "", *paragraphs(found["text"]), f"{link}.", ""]
        lines += [f"![{name}](../results/{name}.png)"]
    return "\n".join([*lines, "", "This page was written by `python scripts/write_results.py`.", ""])


if __name__ == "__main__":
    main(sys.argv[1:])
