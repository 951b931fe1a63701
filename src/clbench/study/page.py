"""The Markdown page of one study: figure, results, claims, findings, chosen options, and the details folded away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from clbench.runs.sweep_log import duration
from clbench.study.overview import overview, place
from clbench.study.plan import overrides_of, text_of
from clbench.study.table import markdown_table, methods, table_with_legend, value_text

QUICK = "**This is the quick form. It shows that every step runs; its numbers mean nothing.**"


def markdown(found: dict[str, Any], picture: str) -> str:
    """Return the page of one study, the content of study.md.

    Args:
        found: Content of study.json.
        picture: File with the figure.
    """
    quick = [QUICK, ""] if found["name"].endswith("-quick") else []
    lines = [
        *(f"# {found['title']}", "", *quick, f"**{sentence(outcome(found))}**", ""),
        *(f"![Results of every method]({picture})", ""),
        *("This command reproduces the page:", "", "```bash", found["command"], "```", ""),
        *([f"**Source.** {sentence(found['source'])}", ""] if found["source"] else []),
        *(paragraphs(f"**Set-up.** {found['text']}") if found["text"] else []),
        *_results(found),
        *_claims(found),
        *_findings(found),
        *_options(found),
        *("## Details", "", *_numbers(found), *_grids(found), *_commands(found)),
        *("## Cost, code and versions", "", *_origin(found)),
    ]
    return "\n".join(lines)


def outcome(found: dict[str, Any]) -> str:
    """Return how many numbers match and how many claims hold, in one line."""
    parts = [place(found)] if "parts" in found else []
    if found["compared"]:
        parts.append(f"{found['matches']} of {found['compared']} published numbers match")
    if found["claims"]:
        parts.append(f"{sum(claim['holds'] for claim in found['claims'])} of {len(found['claims'])} claims hold")
    return ", ".join(parts) or "no published number to compare with"


def cost(found: dict[str, Any]) -> str:
    """Return the time of all runs on one core, and what was spent thanks to shared first tasks."""
    shared, whole = found.get("shared_seconds", 0), found["seconds"]
    spent = (
        f"; {duration(whole - shared)} were spent, because shared first tasks saved {duration(shared)}"
        if shared
        else ""
    )
    return f"{found['runs']} separate runs take {duration(whole)} on one core{spent}"


def sentence(text: str) -> str:
    """Return ``text`` on one line, with a capital letter and a full stop."""
    line = " ".join(text.split())
    return line[:1].upper() + line[1:] + ("" if line.endswith((".", "!", "?")) else ".")


def paragraphs(text: str) -> list[str]:
    """Return the lines of ``text`` as Markdown paragraphs."""
    return [line for paragraph in text.splitlines() if paragraph.strip() for line in (sentence(paragraph), "")]


def _results(found: dict[str, Any]) -> Iterator[str]:
    """One line per method and one column per metric."""
    yield from ("## Results", "", *table_with_legend(found), "")
    if "parts" in found:
        yield from (line for paragraph in overview(found) for line in (paragraph, ""))


def _claims(found: dict[str, Any]) -> Iterator[str]:
    if found["claims"]:
        rows = [[claim["text"], claim["measured"], "✓" if claim["holds"] else "✗"] for claim in found["claims"]]
        yield from ("## Claims", "", *markdown_table((["claim", "measured", "holds"], rows)), "")


def _findings(found: dict[str, Any]) -> Iterator[str]:
    """What was found, and which differing rows have not been investigated."""
    lines = []
    for row in found["rows"]:
        differs = [m for m, number in row["selections"][0]["metrics"].items() if number["verdict"] == "differs"]
        if row["findings"]:
            lines.append(f"- **{row['name']}**: {' '.join(row['findings'].split())}")
        elif differs:
            lines.append(f"- **{row['name']}**: {', '.join(differs)} differs. This has not been investigated.")
    if lines:
        yield from ("## Findings", "", *lines, "")


def _options(found: dict[str, Any]) -> Iterator[str]:
    """The chosen point of every grid, and what the runs of every method cost."""
    rows = []
    for row in found["rows"]:
        for name, selection in methods(row):
            edge = selection["at_an_edge"]
            point = [f"`{key}={short(value)}`{'†' if key in edge else ''}" for key, value in selection["point"].items()]
            chosen = f"as {row['like']}" if row["like"] else " ".join(point) or "none"
            hashes = selection["config_hashes"]
            seeds = ranges([cell["seed"] for cell in row["cells"] if cell["config_hash"] in hashes])
            rows.append([name, chosen, seeds, f"{row['seconds']:.1f}", str(len(row["cells"]))])
    head = ["method", "chosen options", "seeds", "seconds per run", "runs"]
    text = "Seconds per run are the median over the final runs."
    if any(row["grid"] for row in found["rows"]):
        rules = dict.fromkeys(f"`{s['by']}`" for row in found["rows"] for s in row["selections"] if s["by"])
        text += " The number of runs includes the trial runs of the grid."
        text += f" Options are chosen by the best {' or '.join(rules)}."
    else:
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    points = sorted({len(row["trials"][0]["points"]) for row in found["rows"] if row["trials"]})
    if len(points) > 1:
        text += (
            f" The grids have {points[0]} to {points[-1]} points, extensions included: the budgets for tuning differ."
        )
    if any("†" in row[1] for row in rows):
        text += " † marks a value at the edge of its grid."
    lines = [text, "", *markdown_table((head, rows))]
    yield from ("## Options and cost", "")
    yield from _folded(f"Options and cost of {len(rows)} rows", lines) if "parts" in found else (*lines, "")


def _numbers(found: dict[str, Any]) -> Iterator[str]:
    """Confidence intervals, differences and tolerances."""
    rows = []
    for row in found["rows"]:
        for name, selection in methods(row):
            for metric, number in selection["metrics"].items():
                published, difference, tolerance = number["published"], "", ""
                if published is not None:
                    difference = f"{number['difference']:+.4f}"
                    tolerance = "" if number["tolerance"] is None else f"{number['tolerance']:.4f}"
                interval = "" if number.get("interval") is None else f"± {number['interval']:.4f}"
                theirs = (
                    "" if published is None else f"{value_text(published['value'], published['se'])} ({published['n']})"
                )
                numbers = [f"{value_text(number['mean'], number['se'])} ({number['n']})", interval, theirs]
                rows.append([name, metric, *numbers, difference, tolerance, number["verdict"] or ""])
    head = ["method", "metric", "mean ± se (runs)", "95 % interval", "published (runs)", "difference", "tolerance"]
    if not found["compared"]:
        head, rows = head[:4], [row[:4] for row in rows]
    else:
        head.append("verdict")
    yield from _folded("Intervals, differences and tolerances", markdown_table((head, rows)))


def _grids(found: dict[str, Any]) -> Iterator[str]:
    """One folded table per grid; rules that judge the same runs share a table."""
    for row in found["rows"]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for trials in row["trials"]:
            same = str([(trial["point"], trial["metrics"], trial["diverged"]) for trial in trials["points"]])
            groups.setdefault(same + str(trials["overrides"]), []).append(trials)
        for rules in groups.values():
            yield from _grid(row, rules, found["metrics"])


def _grid(row: dict[str, Any], rules: Sequence[dict[str, Any]], metrics: Iterable[str]) -> Iterator[str]:
    points = rules[0]["points"]
    counts = sorted({number["n"] for trial in points for number in trial["metrics"].values()})
    chosen = {rule["by"]: selection["point"] for rule, selection in zip(row["trials"], row["selections"], strict=True)}
    rows = []
    for at, trial in enumerate(points):
        known = trial["metrics"]
        cells = [short(value) for value in trial["point"].values()]
        for metric in metrics:
            number = known.get(metric)
            count = f" ({number['n']})" if number and len(counts) > 1 else ""
            cells.append(value_text(number["mean"], number["se"]) + count if number else "")
        for rule in rules:
            score = rule["points"][at]["score"]
            text = "diverged" if score is None else f"{score:.4f}"
            cells.append(f"**{text}**" if chosen[rule["by"]] == trial["point"] else text)
        rows.append(cells)
    runs = " or ".join(f"{count} run{'s' if count > 1 else ''}" for count in counts) or "no finished run"
    legend = [f"Mean ± standard error, {runs} per point. The score of the chosen point is bold."]
    if rules[0]["overrides"]:
        legend.append(f"Trial runs add {' '.join(f'`{override}`' for override in rules[0]['overrides'])}.")
    table = markdown_table(([*row["grid"], *metrics, *(f"score: {rule['by']}" for rule in rules)], rows))
    yield from _folded(f"Grid of {row['name']}: {len(points)} points", [" ".join(legend), "", *table])


def _commands(found: dict[str, Any]) -> Iterator[str]:
    commands = [
        " ".join([row["command"], *overrides_of(point)])
        for row in found["rows"]
        for point in _different(selection["point"] for selection in row["selections"])
    ]
    text = "Each command trains one run of a method at its chosen options. Add `seed=K` for another seed."
    yield from _folded("Command of every method", [text, "", "```bash", *commands, "```"])


def _origin(found: dict[str, Any]) -> Iterator[str]:
    machines = "; ".join(f"{m['cpu']}, {m['cores']} cores, {m['system']}" for m in found["machines"])
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in each.items()) for each in found["versions"])
    yield f"- {sentence(cost(found))[:-1]} ({machines})."
    yield f"- Commits: {', '.join(found['commits'])}. Date: {found['date']}."
    yield from (f"- Versions: {versions}.", "")


def short(value: Any) -> str:
    """Return an option's value, a long number with four digits: ``0.0033333333`` as ``0.003333``."""
    text = text_of(value)
    return (f"{value:.4g}" if isinstance(value, float) and len(text) > 7 else text).replace("e+0", "e")


def ranges(seeds: Iterable[int]) -> str:
    """Return seeds as ``0 to 4`` or ``0, 2``."""
    ordered = sorted(set(seeds))
    if len(ordered) > 2 and all(b - a == 1 for a, b in pairwise(ordered)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))


def _folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>", "")


def _different(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({str(point): point for point in points}.values())
