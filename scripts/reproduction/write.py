"""Write the files of a study, results/NAME.json, .md and .png, and the index of all studies, docs/reproductions.md."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from clbench.runs.folder import atomically
from reproduction.figure import figure
from reproduction.page import MATCHES, markdown, outcome, paragraphs
from reproduction.parse import load, names
from reproduction.progress import duration
from reproduction.protocol import Protocol


def write(found: dict[str, Any], folder: Path) -> None:
    """Write the three files of one study."""
    folder.mkdir(parents=True, exist_ok=True)
    name = found["name"]
    _text(folder / f"{name}.json", json.dumps(found, indent=1) + "\n")
    _text(folder / f"{name}.md", markdown(found))
    atomically(folder / f"{name}.png", partial(figure(found).savefig, format="png", dpi=130))


def rewrite(results: Path) -> None:
    """Write the files of every study in ``results`` again, with the numbers that are there and the current texts."""
    for found in _all(results):
        write(with_texts(found, load(found["name"].removesuffix("-full"))), results)


def with_texts(found: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """Return ``found`` with the title, source, text, findings and claims of ``protocol``."""
    findings = {row.name: row.findings.strip() for row in protocol.rows}
    texts = {"title": protocol.title, "source": protocol.source, "text": protocol.text}
    rows = [{**row, "findings": findings[row["name"]]} for row in found["rows"]]
    claims = [{**old, "text": new.text} for old, new in zip(found["claims"], protocol.claims, strict=True)]
    return {**found, **texts, "rows": rows, "claims": claims}


def write_index(results: Path, page: Path) -> None:
    """Write the page that shows all studies of a folder."""
    _text(page, index(_all(results)))


def index(all_found: list[dict[str, Any]]) -> str:
    """Return the page that shows all studies."""
    lines = [
        "# Reproductions",
        "",
        "Each study repeats a published protocol or one of the notes that this project started with, or is an experiment of",
        "its own. A linked page has the numbers, the findings and the command. `python scripts/reproduce.py --list` lists the",
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
    return "\n".join([*lines, "", "This page was written by `python scripts/reproduce.py --index`.", ""])


def _all(results: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))]


def _text(path: Path, text: str) -> None:
    atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
