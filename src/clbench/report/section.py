"""One setting on the page: the answer in words, the strategies, the curves, all cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from pandas import DataFrame

from clbench.report import rows as tables
from clbench.report.html import card, counted
from clbench.report.statistics import PAIRED_FROM, is_reference
from clbench.runs.names import WORDS


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Args:
        name: of the setting.
        cells: over seeds, from ``choose``.
        rows: those shown first, from ``shown``.
        runs: the complete ones.
        pairs: paired differences of ``rows``.
        select: the data lam was chosen on, validation or test.
    """

    name: str
    cells: DataFrame
    rows: DataFrame
    runs: DataFrame
    pairs: DataFrame
    select: str

    @property
    def has_lams(self) -> bool:
        """Whether there was a lam to choose."""
        return bool((self.cells.lams > 1).any())

    @property
    def chance(self) -> float:
        """Accuracy of guessing at the end."""
        return float(self.runs.chance.iloc[0][-1])


def section(number: int, setting: Setting, figures: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """The html of a setting.

    Args:
        number: of the setting on the page.
        setting: what is known of it.
        figures: html by name: ranking, lam_curves, over_tasks, tradeoff, matrices; those there are.
        colours: of the strategies.
    """
    drawn = {name: f'<div class="scroll">{svg}</div>' for name, svg in figures.items()}
    cells, rows = setting.cells, setting.rows
    most = f"a - b of runs with the same seed, from {PAIRED_FROM} seeds on; paired t-test, p not corrected for many comparisons"
    hidden = len(cells) - len(rows)
    parts = {
        "Strategies": (_how(setting), tables.strategies(rows, setting.chance, colours)),
        "Average accuracy": (
            "mean and 95 % interval over seeds; small dots: seeds; dotted: chance, where it is near",
            drawn.get("ranking"),
        ),
        "lam": (
            "star: the best on test data (oracle); ring: the lam chosen; band: 95 % interval over seeds",
            drawn.get("lam_curves", "") + tables.lams(cells) if setting.has_lams else None,
        ),
        "Accuracy over tasks": (
            "mean over the tasks learned so far; band: 95 % interval over seeds; of more than 8 rows, the best of each strategy",
            drawn.get("over_tasks"),
        ),
        "Forgetting against learning": (
            "a point per cell, filled: the rows of the first table; references are not part of the front",
            drawn.get("tradeoff"),
        ),
        "Accuracy matrices": ("mean over seeds", drawn.get("matrices")),
        "Paired differences": (most, tables.differences(setting.pairs) if len(setting.pairs) else None),
    }
    shown = "".join(card(body, title=title, note=note) for title, (note, body) in parts.items() if body)
    every = f"<details><summary>All {len(cells)} cells</summary>{tables.all_cells(cells, colours)}</details>"
    head = f'<h2 id="s{number}">{escape(setting.name)}</h2>{card(lead(setting), kind="lead")}'
    return head + shown + (card(every) if hidden else "")


def lead(setting: Setting) -> str:
    """The answer in a sentence: who is best, by how much, and how far from fine-tuning to joint training that is."""
    rows = setting.rows
    contestants = rows[~rows.strategy.map(is_reference) & (rows.strategy != "finetune")]
    first = (contestants if len(contestants) else rows).iloc[0]
    accuracy, half = first.average_accuracy, first.average_accuracy_ci
    interval = "" if math.isnan(half) else f" ± {half:.3f}"
    known = rows.drop_duplicates("strategy").set_index("strategy").average_accuracy
    top = next((name for name in ("joint_from_scratch", "joint") if name in known), "")
    beside = {name: known[name] for name in ("finetune", top) if name in known and name != first.strategy}
    said = [f"{WORDS.get(name, name)} {value:.3f}" for name, value in {**beside, "chance": setting.chance}.items()]
    best = f"Best of {contestants.variant.nunique()}: " if contestants.variant.nunique() > 1 else ""
    behind = "finetune" in beside and accuracy <= known["finetune"]
    nothing = f"Nothing beats fine-tuning ({known['finetune']:.3f}). " if behind else ""
    answer = (
        f"{nothing}{best}<b>{escape(first.cell)}</b> ends with average accuracy <b>{accuracy:.3f}</b>{interval} "
        f"over {counted(first.seeds, 'seed')}; {', '.join(said)}."
    )
    more = []
    if len(beside) == 2 and known[top] > known["finetune"]:
        share = (accuracy - known["finetune"]) / (known[top] - known["finetune"])
        more.append(f"That is {share:.0%} of the way from fine-tuning to {WORDS[top]}.")
    if first.lams > 1:
        more.append(_chosen(bool(first.chosen), setting.select).capitalize() + ".")
        tried = setting.cells[setting.cells.variant == first.variant].lam
        if first.chosen and first.lam in (tried.min(), tried.max()):
            end = "smallest" if first.lam == tried.min() else "largest"
            more.append(f"It is the {end} that was tried: the best may lie beyond.")
    return f"<p>{answer}</p>" + (f"<p>{' '.join(more)}</p>" if more else "")


def _how(setting: Setting) -> str:
    """How the table of strategies is to be read."""
    base = "mean ± half of the 95 % Student interval over seeds; bold: best, references left out"
    several = setting.rows[setting.rows.lams > 1]
    if several.empty:
        return base
    said = dict.fromkeys(_chosen(bool(chosen), setting.select) for chosen in several.chosen)
    return "; ".join([base, *said])


def _chosen(chosen: bool, select: str) -> str:
    if not chosen:
        return "no validation data to choose lam on, so every lam is shown"
    return (
        "lam chosen on validation data"
        if select == "validation"
        else "lam chosen on test data: an oracle, not a result"
    )
