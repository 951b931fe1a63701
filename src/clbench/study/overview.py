"""Overview of a study with parts, whose rows compete: a line per method, what holds in each part, and the statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from clbench.config.display import text_table
from clbench.metrics.registry import BUILT_IN
from clbench.report.tables import escape_tex
from clbench.runs.names import REFERENCES
from clbench.study.ranks import all_ranks, competing, critical_difference, in_part, methods_of, paired

Found = Mapping[str, Any]
"""Content of study.json of a study with parts."""

BASELINE = "finetune"
"""Method with which all others are compared."""


def overview_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """Return heading and lines of the table in Markdown. The best values are bold, and so is the method of the user."""
    own, parts = found.get("own"), found["parts"]
    ranks = all_ranks(found)
    lines = []
    for method in methods_of(found):
        cells = [f"**{method}**" if method == own else method]
        for part in parts:
            mean, error = _texts(found, part, method)
            cells.append(f"**{mean}** {error}" if _is_best(found, part, method) else f"{mean} {error}".strip())
        cells.append(f"{fmean(ranks[method]):.1f}" if method in ranks else "")
        cells += [_difference(found, part, method) for part in parts if own]
        lines.append([*cells, _time(found, method), _stored(found, method)])
    differences = [f"{own} minus it: {part}" for part in parts if own]
    return ["method", *parts, "mean rank", *differences, "time", "stored"], lines


def terminal_overview(found: Found) -> Table:
    """Return the table for the terminal."""
    head, lines = overview_table(found)
    table = text_table(*head)
    for line in lines:
        table.add_row(*(Text(cell.replace("**", "")) for cell in line))
    return table


def overview_tex(found: Found) -> str:
    """Return the table as a booktabs table for ``input`` in a LaTeX document. All values printed as the best one are bold."""
    parts, ranks = found["parts"], all_ranks(found)
    lines = [
        f"% {' '.join(found['title'].split())}: mean and standard error over seeds; requires \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{l{'r' * len(parts)}r}}",
        "\\toprule",
        " & ".join(["method", *map(escape_tex, parts), "mean rank"]) + r" \\",
        "\\midrule",
    ]
    for method in methods_of(found):
        cells = [escape_tex(method)]
        for part in parts:
            mean, error = _texts(found, part, method)
            bold = rf"\mathbf{{{mean}}}" if _is_best(found, part, method) else mean
            cells.append(f"${bold} {error}$".replace("±", r"\pm") if mean else "")
        cells.append(f"{fmean(ranks[method]):.1f}" if method in ranks else "")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def place(found: Found) -> str:
    """Return the place of the user's method by mean rank, or the best method, in one line."""
    ranked = [method for method in methods_of(found) if method in competing(found)]
    own = found.get("own")
    if own is None:
        return f"best mean rank of {len(ranked)} methods: {ranked[0]}"
    place = f"place {ranked.index(own) + 1} of {len(ranked)} by mean rank" if own in ranked else "not in all parts"
    return f"{place}: {own}"


def overview(found: Found) -> Iterator[str]:
    """Yield the paragraphs below the table: what holds in each part, the repeated runs, and how it was computed."""
    for part in found["parts"]:
        yield f"**{part}.** {' '.join(_holds(found, part))}"
    if found.get("changed"):
        yield f"**Another protocol.** The yaml file of {found['own']} also sets {', '.join(found['changed'])}."
    if "repeated" in found:
        yield f"**Repeated runs.** {repeated_text(found)}"
    yield f"**Statistics.** {statistics_text(found)}"


def statistics_text(found: Found) -> str:
    """Return the paragraph that describes the statistics, for a paper."""
    metric, methods, ranks = next(iter(found["metrics"])), competing(found), all_ranks(found)
    number = len(ranks[methods[0]])
    return (
        f"Values are means of the {metric} over seeds with standard errors, on test data. The mean rank is the mean over "
        f"{number} pairs of part and seed of the rank among the {len(methods)} methods that are in all parts; equal values share "
        f"a rank. Mean ranks that differ by {critical_difference(len(methods), number):.1f} or more differ significantly at "
        "the level .05, for all pairs of methods together (Nemenyi test, Demsar 2006). The bars in the figure are half as long "
        "to each side, so that bars that do not overlap differ significantly. With many methods and few seeds it finds only "
        "large differences, and it takes parts and seeds as independent. Differences of two methods are paired by seed, with the "
        "95 % Student t interval of their mean, and are not corrected for the number of methods. The time is that of a run "
        f"divided by that of {BASELINE} on the same machine. What is stored is the maximum over tasks. "
        f"{', '.join(REFERENCES)} are references, which use all earlier data or a net per task, and have no rank."
    )


def repeated_text(found: Found) -> str:
    """Return whether the committed runs that were repeated on this machine gave the committed values."""
    rows = [f"{each['row']}, seed {each['seed']}" for each in found["repeated"]]
    largest = max(
        abs(again - before)
        for each in found["repeated"]
        for before, again in zip(each["committed"], each["now"], strict=True)
    )
    names = " and ".join(rows)
    if largest == 0:
        return f"{names} gave exactly the committed values on this machine."
    return (
        f"{names} did not give the committed values on this machine. The largest difference of a metric is {largest:.4f}. "
        "Another processor or version of torch changes the last digits of the weights. Runs are still paired by seed, because it "
        "also determines the data and their order, but differences of this size mean nothing."
    )


def _holds(found: Found, part: str) -> Iterator[str]:
    """Yield what holds in a part: the best methods with and without stored examples, and those that do not beat fine-tuning."""
    metric = next(iter(found["metrics"]))
    rows = {method: row for method, row in in_part(found, part).items() if method not in REFERENCES}
    stores = {method: any(text.startswith("memory=") for text in _overrides(row)) for method, row in rows.items()}
    for kind, what in ((False, "without stored examples"), (True, "with stored examples")):
        of_kind = [method for method in rows if stores[method] is kind and method != BASELINE]
        if of_kind:
            best = max(of_kind, key=lambda method: _mean(rows[method], metric))
            yield f"The best {what} is {best} ({_mean(rows[best], metric):.3f})."
    if BASELINE in rows:
        signs = {m: paired(row, rows[BASELINE], metric).sign for m, row in rows.items() if m != BASELINE}
        yield f"{BASELINE} has {_mean(rows[BASELINE], metric):.3f}."
        for sign, what in ((0, "No significant difference from it"), (-1, "Worse")):
            if methods := [method for method, each in signs.items() if each == sign]:
                yield f"{what} (95 % interval of the paired difference): {', '.join(methods)}."
        if not any(sign > 0 for method, sign in signs.items() if not stores[method]):
            yield "No method without stored examples is better than it."


def _overrides(row: Mapping[str, Any]) -> list[str]:
    return [text for cell in row["cells"][:1] for text in cell["overrides"]]


def _mean(row: Mapping[str, Any], metric: str) -> float:
    return float(row["selections"][0]["metrics"][metric]["mean"])


def _texts(found: Found, part: str, method: str) -> tuple[str, str]:
    """Return mean and standard error of a method in a part as text, empty if it is not in the part."""
    if (row := in_part(found, part).get(method)) is None:
        return "", ""
    number = row["selections"][0]["metrics"][next(iter(found["metrics"]))]
    return f"{number['mean']:.3f}", "" if number["se"] is None else f"± {number['se']:.3f}"


def _is_best(found: Found, part: str, method: str) -> bool:
    """Return whether a method has the best printed value of a part, references excluded."""
    texts = {other: _texts(found, part, other)[0] for other in in_part(found, part) if other not in REFERENCES}
    return texts.get(method) == max(texts.values(), key=float)


def _difference(found: Found, part: str, method: str) -> str:
    rows, own = in_part(found, part), found["own"]
    if method == own or method not in rows or own not in rows:
        return ""
    each = paired(rows[own], rows[method], next(iter(found["metrics"])))
    return f"{each.mean:+.3f} ± {each.half:.3f}"


def _time(found: Found, method: str) -> str:
    """Return the time of a run divided by that of fine-tuning on the same machine, in the first part that has both."""
    for part in found["parts"]:
        rows = in_part(found, part)
        if method == found.get("own"):
            seconds = found["baseline_seconds"].get(part)
        else:
            seconds = rows[BASELINE]["seconds"] if BASELINE in rows else None
        if method in rows and seconds:
            return f"{rows[method]['seconds'] / seconds:.2f}"
    return ""


def _stored(found: Found, method: str) -> str:
    rows = [in_part(found, part).get(method) for part in found["parts"]]
    return BUILT_IN["bytes"].text(max(row["bytes"] for row in rows if row is not None))
