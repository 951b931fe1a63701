"""write: results/NAME.json, NAME.md and NAME.png, and the page that shows all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from clbench.runs.folder import atomically
from reproduction.figure import figure
from reproduction.parse import names
from reproduction.plan import overrides_of
from reproduction.progress import duration

QUICK = "**The quick form: it shows that everything runs; its numbers mean nothing.**"


def write(found: dict[str, Any], folder: Path) -> None:
    """The three files of one reproduction."""
    folder.mkdir(parents=True, exist_ok=True)
    name = found["name"]
    _text(folder / f"{name}.json", json.dumps(found, indent=1) + "\n")
    _text(folder / f"{name}.md", markdown(found))
    atomically(folder / f"{name}.png", partial(figure(found).savefig, format="png", dpi=130))


def write_index(results: Path, page: Path) -> None:
    """The page of all results in a folder."""
    _text(page, index([json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))]))


def markdown(found: dict[str, Any]) -> str:
    """The report of one reproduction, for people."""
    quick = [QUICK, ""] if found["name"].endswith("-quick") else []
    lines = [f"# {found['title']}", "", *quick, f"Source: {found['source']}", "", found["text"].strip(), ""]
    lines += [f"**{outcome(found)}**", ""]
    if found["claims"]:
        lines += ["| claim | measured | holds |", "|---|---|---|"]
        lines += [f"| {c['text']} | {c['measured']} | {'yes' if c['holds'] else 'no'} |" for c in found["claims"]]
        lines += [""]
    lines += [f"![all rows]({found['name']}.png)", "", *_table(found), *_trials(found), *_findings(found)]
    lines += [
        "## How it was run",
        "",
        "Any row runs alone; add `seed=K`:",
        "",
        "```bash",
        f"{found['command']}   # all",
    ]
    lines += [
        " ".join([row["command"], *overrides_of(point)])
        for row in found["rows"]
        for point in _different(selection["point"] for selection in row["selections"])
    ]
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in each.items()) for each in found["versions"])
    machines = "; ".join(f"{m['cpu']}, {m['cores']} cores, {m['system']}" for m in found["machines"])
    lines += [
        "```",
        "",
        f"{found['runs']} runs, {duration(found['seconds'])} on one core, one thread each, {machines}.",
    ]
    lines += [f"Commit {', '.join(found['commits'])}; {versions}; {found['date']}.", ""]
    return "\n".join(lines)


def outcome(found: dict[str, Any]) -> str:
    """In one line: how many numbers agree, how many claims hold."""
    held = sum(claim["holds"] for claim in found["claims"])
    parts = []
    if found["compared"]:
        parts.append(f"{found['matches']} of {found['compared']} published numbers match")
    if found["claims"]:
        parts.append(f"{held} of {len(found['claims'])} claims hold")
    return ", ".join(parts) or "no published number to compare with"


def index(all_found: list[dict[str, Any]]) -> str:
    """The page of all reproductions."""
    lines = [
        "# Reproductions",
        "",
        "Written by `python scripts/reproduce.py --index`. A number matches if |ours - theirs| is at most",
        "2 sqrt(se_ours^2 + se_theirs^2); beside a single published run, if that lies within our mean +- 2 sd.",
        "",
        "| reproduction | outcome | runs | seconds of all runs, other programs beside them | commit |",
        "|---|---|---|---|---|",
    ]
    for found in all_found:
        link = f"[{found['title']}](../results/{found['name']}.md)"
        commits = ", ".join(found["commits"])
        lines.append(f"| {link} | {outcome(found)} | {found['runs']} | {found['seconds']:.0f} | {commits} |")
    if missing := [f"`{name}`" for name in names() if name not in [found["name"] for found in all_found]]:
        lines += ["", f"Protocols that are there and have not been run: {', '.join(missing)}."]
    for found in all_found:
        name = found["name"]
        lines += ["", f"## {found['title']}", "", f"{found['text'].strip()}", "", f"![{name}](../results/{name}.png)"]
    return "\n".join(lines) + "\n"


def _different(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({str(point): point for point in points}.values())


def selection_label(selection: dict[str, Any]) -> str:
    """``lam=1000, best by average_accuracy``; empty without a grid."""
    if selection["by"] is None:
        return ""
    edge = f", at the edge of {', '.join(selection['at_an_edge'])}" if selection["at_an_edge"] else ""
    return f"{', '.join(overrides_of(selection['point']))}, best by {selection['by']}{edge}"


def _table(found: dict[str, Any]) -> Iterator[str]:
    yield "| row | metric | ours, mean ± se (n) | 95 % | theirs | difference | tolerance | verdict | seconds a run (median) |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        for selection in row["selections"]:
            label = selection_label(selection)
            name = f"{row['name']} ({label})" if label else row["name"]
            for metric, number in selection["metrics"].items():
                theirs, difference, tolerance = "", "", ""
                if (p := number["published"]) is not None:
                    theirs = (
                        f"{p['value']:.4f} (1)" if p["se"] is None else f"{p['value']:.4f} ± {p['se']:.4f} ({p['n']})"
                    )
                    difference = f"{number['difference']:+.4f}"
                    tolerance = "" if number["tolerance"] is None else f"{number['tolerance']:.4f}"
                said = number["verdict"] or ""
                ours, interval = _mean_and_error(number), number.get("interval")
                within = "" if interval is None else f"± {interval:.4f}"
                numbers = [ours, within, theirs, difference, tolerance, said, f"{row['seconds']:.1f}"]
                yield f"| {' | '.join([name, metric, *numbers])} |"
    yield ""


def _trials(found: dict[str, Any]) -> Iterator[str]:
    """Every point of every grid."""
    for row in found["rows"]:
        for trials in row["trials"]:
            metrics = list(found["metrics"])
            extra = f", runs with {' '.join(trials['overrides'])}" if trials["overrides"] else ""
            yield from (f"## Grid of {row['name']}, {len(trials['points'])} points{extra}", "")
            yield f"| {', '.join(row['grid'])} | {' | '.join(metrics)} | {trials['by']} |"
            yield "|---" * (len(metrics) + 2) + "|"
            for trial in trials["points"]:
                point = ", ".join(text.split("=", 1)[1] for text in overrides_of(trial["point"]))
                known = trial["metrics"]
                numbers = " | ".join(_mean_and_error(known[metric]) if known else "" for metric in metrics)
                score = "diverged" if trial["score"] is None else f"{trial['score']:.4f}"
                yield f"| {point} | {numbers} | {score} |"
            yield ""


def _findings(found: dict[str, Any]) -> Iterator[str]:
    """What was found, and which differing rows nobody has looked at."""
    told = []
    for row in found["rows"]:
        differs = [m for m, number in row["selections"][0]["metrics"].items() if number["verdict"] == "differs"]
        if row["findings"]:
            told.append(f"- **{row['name']}**: {' '.join(row['findings'].split())}")
        elif differs:
            told.append(f"- **{row['name']}**: {', '.join(differs)} differs; not investigated yet.")
    if told:
        yield from ("## Findings", "", *told, "")


def _mean_and_error(number: dict[str, Any]) -> str:
    se = "" if number["se"] is None else f" ± {number['se']:.4f}"
    return f"{number['mean']:.4f}{se} ({number['n']})"


def _text(path: Path, text: str) -> None:
    atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
