"""The section of a benchmark on the page: main result, strategies, curves and all setups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame, Series

from clbench.metrics.quality import Quality
from clbench.metrics.registry import metrics_of, records_of
from clbench.report import html_tables
from clbench.report.columns import Metrics, quality_of_rows
from clbench.report.summary import MAX_PAIRED, MIN_PAIRED_SEEDS, is_reference, paired_differences, selected_rows
from clbench.runs.names import BASELINE_LABELS


@dataclass(frozen=True)
class Benchmark:
    """The results of one benchmark.

    Args:
        name: Name of the benchmark.
        setups: Setups, from ``select_lam``.
        rows: Setups in the first table, from ``selected_rows``.
        runs: Complete runs.
        differences: Paired differences of ``rows``.
        select: Data on which lam was selected, validation or test.
        metrics: Metrics by name, with the words and directions of the quality.
    """

    name: str
    setups: DataFrame
    rows: DataFrame
    runs: DataFrame
    differences: DataFrame
    select: str
    metrics: Metrics

    @property
    def quality(self) -> Quality:
        """Quality of the runs."""
        return quality_of_rows(self.setups)

    @property
    def has_lams(self) -> bool:
        """Whether at least one method was run at several lams."""
        return bool((self.setups.lam_count > 1).any())

    @property
    def chance(self) -> float:
        """Accuracy of guessing after the last task, nan for other qualities."""
        return float(self.runs.chance.iloc[0][-1])


def split_benchmarks(complete: DataFrame, setups: DataFrame, select: str) -> list[Benchmark]:
    """Return the benchmarks of the complete runs, in descending order of their numbers of runs."""
    rows = selected_rows(setups)
    differences = paired_differences(complete, rows)
    return [
        Benchmark(
            name=str(name),
            setups=setups[setups.benchmark == name],
            rows=rows[rows.benchmark == name],
            runs=complete[complete.benchmark == name],
            differences=differences[differences.benchmark == name],
            select=select,
            metrics=records_of(quality_of_rows(setups[setups.benchmark == name]), metrics_of(complete.extra_metrics)),
        )
        for name in complete.benchmark.value_counts().index
    ]


def section_context(
    number: int, benchmark: Benchmark, figures: Mapping[str, str], colours: Mapping[str, str]
) -> dict[str, Any]:
    """Return the context of the template ``section.html`` for a benchmark.

    Args:
        number: Position of the benchmark on the page.
        benchmark: Results of the benchmark.
        figures: SVG of each figure that was drawn, by name: ranking, lam_curves, over_tasks, tradeoff, matrices.
        colours: Colour of each strategy.
    """
    setups, rows, label = benchmark.setups, benchmark.rows, benchmark.quality.label
    chance = "" if math.isnan(benchmark.chance) else "Dotted line: chance, if it is close. "
    cards = [
        card(
            "Strategies",
            _strategies_note(benchmark),
            table=html_tables.strategies_table(rows, benchmark.metrics, benchmark.chance, colours),
        ),
        card(
            f"Average {label}",
            f"Mean and 95 % interval over seeds. Small dots: single seeds. {chance}At most the 40 best rows are drawn.",
            figures.get("ranking"),
        ),
        card(
            "lam",
            "Star: best lam on test data (oracle). Ring: selected lam. Band: 95 % interval over seeds. "
            "At most the 12 best methods of a strategy are drawn.",
            figures.get("lam_curves"),
            html_tables.lam_table(setups) if benchmark.has_lams else None,
        ),
        card(
            f"{label.capitalize()} over tasks",
            "Mean over the tasks learned so far. Band: 95 % interval over seeds. "
            "With more than 8 rows, only the best of each strategy is drawn.",
            figures.get("over_tasks"),
        ),
        card(
            "Forgetting against learning",
            "One point per setup. Filled: rows of the first table. References are excluded from the Pareto front.",
            figures.get("tradeoff"),
        ),
        card(f"{label.capitalize()} matrices", "Mean over seeds.", figures.get("matrices")),
        card(
            "Paired differences",
            f"a - b over runs with the same seed, for at least {MIN_PAIRED_SEEDS} shared seeds of the {MAX_PAIRED} best rows. "
            "p: paired t-test, not corrected for multiple comparisons.",
            table=html_tables.differences_table(benchmark.differences, benchmark.metrics)
            if len(benchmark.differences)
            else None,
        ),
    ]
    return {
        "id": f"s{number}",
        "name": benchmark.name,
        "lead": lead_context(benchmark),
        "cards": [one for one in cards if one["figure"] or one["table"]],
        "setup_count": len(setups),
        "setups": html_tables.setups_table(setups, benchmark.metrics, colours) if len(setups) > len(rows) else None,
    }


def card(title: str, note: str, figure: str | None = None, table: html_tables.Table | None = None) -> dict[str, Any]:
    """Return a box of the page: a title, a note on how to read it, and a figure, a table or both."""
    return {"title": title, "note": note, "figure": figure, "table": table}


def lead_context(benchmark: Benchmark) -> dict[str, Any]:
    """Return the parts of the main result: the best method and its average, and those of the baselines."""
    rows, sign = benchmark.rows, benchmark.quality.sign
    contestants = rows[~rows.strategy.map(is_reference) & (rows.strategy != "finetune")]
    best = (contestants if len(contestants) else rows).iloc[0]
    baselines = rows.drop_duplicates("strategy").set_index("strategy").average_accuracy
    upper = next((name for name in ("joint_from_scratch", "joint") if name in baselines), "")
    compared = {name: baselines[name] for name in ("finetune", upper) if name in baselines and name != best.strategy}
    half = best.average_accuracy_ci
    return {
        "fine_tuning": _fraction(compared["finetune"])
        if "finetune" in compared and sign * best.average_accuracy <= sign * compared["finetune"]
        else "",
        "method_count": contestants.method.nunique(),
        "setup": best.setup,
        "metric": f"average {benchmark.quality.label}",
        "average": _fraction(best.average_accuracy),
        "half": "" if math.isnan(half) else _fraction(half),
        "seeds": count_noun(best.seeds, "seed"),
        "baselines": [
            f"{BASELINE_LABELS.get(name, name)} {_fraction(value)}"
            for name, value in {**compared, "chance": benchmark.chance}.items()
            if not math.isnan(value)
        ],
        "details": [*_progress(best, compared, upper, sign), *_lam_details(best, benchmark)],
    }


def count_noun(number: int, noun: str) -> str:
    """Return the number with its noun in singular or plural.

    >>> count_noun(1, "seed"), count_noun(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _fraction(value: float) -> str:
    return f"{value:.3f}"


def _progress(best: Series, compared: Mapping[str, float], upper: str, sign: int) -> list[str]:
    """Return the position of the best method between fine-tuning and joint training, if both were run and differ."""
    if len(compared) < 2 or sign * compared[upper] <= sign * compared["finetune"]:
        return []
    share = (best.average_accuracy - compared["finetune"]) / (compared[upper] - compared["finetune"])
    return [f"That is {share:z.0%} of the way from fine-tuning to {BASELINE_LABELS[upper]}."]


def _lam_details(best: Series, benchmark: Benchmark) -> list[str]:
    """Return how lam was selected, and a warning if it is the smallest or largest of the tried values."""
    if best.lam_count <= 1:
        return []
    details = [_selection(bool(best.selected), benchmark.select)]
    tried = benchmark.setups[benchmark.setups.method == best.method].lam
    if best.selected and best.lam == tried.min():
        details.append("It is the smallest lam that was tried. A smaller one may be better.")
    elif best.selected and best.lam == tried.max():
        details.append("It is the largest lam that was tried. A larger one may be better.")
    return details


def _strategies_note(benchmark: Benchmark) -> str:
    """Return the note of the table of strategies."""
    note = "Mean ± half-width of the 95 % Student t interval over seeds. Bold: best, references excluded."
    with_lams = benchmark.rows[benchmark.rows.lam_count > 1]
    selections = dict.fromkeys(_selection(bool(selected), benchmark.select) for selected in with_lams.selected)
    return " ".join([note, *selections])


def _selection(is_selected: bool, data: str) -> str:
    if not is_selected:
        return "Without validation data, lam is not selected and every lam is shown."
    if data == "validation":
        return "lam is selected on validation data."
    return "lam is selected on test data, so the numbers are an oracle and not a result."
