"""What is said over seeds: means with Student intervals, lam chosen, the Pareto front, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from pandas import DataFrame, Series
from scipy.special import stdtr

from clbench.metrics.interval import half_width
from clbench.runs.names import REFERENCES

CELL = ["setting", "cell"]
PAIRED_FROM = 5  # seeds; with fewer an interval of differences says nothing

METRICS = (
    "average_accuracy",
    "learning_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "min_accuracy",
    "worst_case_accuracy",
    "stability_gap",
    "intransigence",
    "nll",
    "ece",
    "validation_average_accuracy",
    "seconds_total",
    "seconds_train",
    "seconds_importance",
    "seconds_evaluation",
    "bytes",
)
LOWER_IS_BETTER = ("forgetting", "stability_gap", "intransigence", "nll", "ece")
HIGHER_IS_BETTER = (*METRICS[:2], *METRICS[3:7], "validation_average_accuracy")


def over_seeds(runs: DataFrame) -> DataFrame:
    """A row per cell of the complete ``runs``: ``seeds`` and, of each metric, ``M`` (its mean) and ``M_ci`` (half width).

    Sorted by setting, variant and lam.
    """
    metrics = list(METRICS)
    groups = runs[runs.status == "complete"].groupby(CELL)
    mean, std, n = (getattr(groups[metrics], name)() for name in ("mean", "std", "count"))
    halves = DataFrame(half_width(std, n), index=mean.index, columns=[f"{name}_ci" for name in metrics])
    first = groups[["variant", "strategy", "lam", "fisher", "samples", "tasks"]].first()
    cells = first.join([groups.size().rename("seeds"), mean, halves]).reset_index()
    return cells.sort_values(["setting", "variant", "lam"], ignore_index=True)


def choose(cells: DataFrame, on: str) -> DataFrame:
    """``cells`` with ``chosen`` and ``oracle``: of each variant the lam with the best average accuracy, a mean over seeds.

    ``chosen`` goes by validation data (``on="validation"``) or by test data (``on="test"``), ``oracle`` always by test data.
    Only lams with the most seeds compete, so that none wins by an easy seed; of equal ones the smallest wins. A variant with
    several lams and no validation data has none chosen by validation.
    """
    column = {"validation": "validation_average_accuracy", "test": "average_accuracy"}[on]
    cells = cells.assign(chosen=False, oracle=False, lams=0)
    for _, of in cells.groupby(["setting", "variant"], sort=False):
        cells.loc[of.index, "lams"] = len(of)
        full = of[of.seeds == of.seeds.max()]
        cells.loc[full.average_accuracy.idxmax(), "oracle"] = True
        if len(of) == 1:
            cells.loc[of.index, "chosen"] = True
        elif full[column].notna().any():
            cells.loc[full[column].idxmax(), "chosen"] = True
    return cells


def shown(cells: DataFrame) -> DataFrame:
    """A row per variant, at the lam chosen; every lam where none could be. The best average accuracy first."""
    some = cells.groupby(["setting", "variant"]).chosen.transform("any")
    return cells[cells.chosen | ~some].sort_values(["setting", "average_accuracy"], ascending=[True, False])


def is_reference(strategy: str) -> bool:
    """Whether it may see what a strategy may not: old data, or a net per task."""
    return strategy in REFERENCES


def pareto(learning: Sequence[float], forgetting: Sequence[float]) -> list[int]:
    """The positions that no other beats: more learning accuracy and less forgetting; by rising learning accuracy."""
    front: list[int] = []
    for i in sorted(range(len(learning)), key=lambda i: (-learning[i], forgetting[i])):
        if not front or forgetting[i] < forgetting[front[-1]]:
            front.append(i)
    return front[::-1]


def paired(runs: DataFrame, rows: DataFrame, metrics: Sequence[str] = ("average_accuracy", "forgetting")) -> DataFrame:
    """Each two ``rows`` of a setting, run with at least five common seeds: mean difference over seeds, a - b.

    Columns ``setting, a, b, seeds`` and, of each metric, ``M``, ``M_ci`` (Student interval of the differences) and ``M_p``
    (paired t-test, two-sided, not corrected for the number of comparisons). The largest differences first.
    """
    complete = runs[runs.status == "complete"]
    by_seed = {cell: of.set_index("seed") for cell, of in complete.groupby(CELL)}
    found = []
    for setting, of in rows.groupby("setting", sort=False):
        for a, b in combinations(of.cell, 2):
            one, other = by_seed[setting, a], by_seed[setting, b]
            common = one.index.intersection(other.index)
            if len(common) < PAIRED_FROM:
                continue
            row = {"setting": setting, "a": a, "b": b, "seeds": len(common)}
            for metric in metrics:
                row |= difference(one.loc[common, metric] - other.loc[common, metric], metric)
            found.append(row)
    columns = ["setting", "a", "b", "seeds", *(f"{metric}{end}" for metric in metrics for end in ("", "_ci", "_p"))]
    return DataFrame(found, columns=columns).sort_values(metrics[0], key=abs, ascending=False, ignore_index=True)


def difference(by_seed: Series, metric: str) -> dict[str, float]:
    """Mean of differences over seeds, half of its Student interval, p of the paired t-test; nan for what is undefined."""
    n, mean, std = by_seed.count(), by_seed.mean(), by_seed.std()
    p = 2 * stdtr(n - 1, -abs(mean) / (std / np.sqrt(n))) if std > 0 else np.nan  # no spread: the test says nothing
    return {metric: mean, f"{metric}_ci": float(half_width(np.array(std), np.array(n))), f"{metric}_p": float(p)}
