"""Statistics over seeds: means with Student t intervals, selection of lam, the Pareto front, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from pandas import DataFrame, Series
from scipy.special import stdtr

from clbench.metrics.interval import half_width
from clbench.metrics.quality import QUALITIES
from clbench.metrics.registry import metrics_of
from clbench.runs.names import REFERENCES

SETUP_KEYS = ["benchmark", "setup"]
MAX_PAIRED = 20
"""Largest number of setups of a benchmark, the best ones, that are compared in pairs. Twenty setups have 190 pairs."""

MIN_PAIRED_SEEDS = 5
"""Smallest number of shared seeds. With fewer, the interval of a paired difference is too wide to be useful."""


def summarize_seeds(runs: DataFrame) -> DataFrame:
    """Return one row per setup of the complete ``runs``, sorted by benchmark, method and lam.

    The columns are ``seeds`` and, for each metric, ``M`` (mean over seeds) and ``M_ci`` (half-width of its interval).
    """
    metrics = list(metrics_of(runs.extra_metrics))
    groups = runs[runs.status == "complete"].groupby(SETUP_KEYS)
    mean, std, n = (getattr(groups[metrics], name)() for name in ("mean", "std", "count"))
    halves = DataFrame(half_width(std, n), index=mean.index, columns=[f"{name}_ci" for name in metrics])
    first = groups[["quality", "method", "strategy", "lam", "fisher", "samples", "tasks"]].first()
    setups = first.join([groups.size().rename("seeds"), mean, halves]).reset_index()
    return setups.sort_values(["benchmark", "method", "lam"], ignore_index=True)


def select_lam(setups: DataFrame, data: str) -> DataFrame:
    """Return ``setups`` with the columns ``selected``, ``oracle`` and ``lam_count`` (number of lams of the method).

    The selected lam of a method has the best average quality, a mean over seeds, on validation data
    (``data="validation"``) or on test data (``data="test"``). The oracle has the best one on test data. Only lams with the
    largest number of seeds are compared, because a lam that lacks a hard seed would have an advantage. In a tie, the smallest
    lam is selected. With ``data="validation"`` and without validation data, no lam is selected if the method has several.
    """
    column = {"validation": "validation_average_accuracy", "test": "average_accuracy"}[data]
    method = ["benchmark", "method"]
    groups = setups.groupby(method, sort=False)
    setups = setups.assign(selected=False, oracle=False, lam_count=groups.setup.transform("size"))
    competing = setups[setups.seeds == groups.seeds.transform("max")]
    for name, average in (("oracle", "average_accuracy"), ("selected", column)):
        known = competing[competing[average].notna()]
        known = known.assign(rank=signs(known) * known[average])
        setups.loc[known.groupby(method, sort=False)["rank"].idxmax(), name] = True
    setups.loc[setups.lam_count == 1, "selected"] = True
    return setups


def selected_rows(setups: DataFrame) -> DataFrame:
    """Return the setup at the selected lam of each method, or all its setups if no lam is selected.

    The rows of a benchmark are sorted by average accuracy, or another quality, from the best to the worst.
    """
    has_selected = setups.groupby(["benchmark", "method"]).selected.transform("any")
    rows = setups[setups.selected | ~has_selected]
    rows = rows.assign(rank=signs(rows) * rows.average_accuracy)
    return rows.sort_values(["benchmark", "rank"], ascending=[True, False]).drop(columns="rank")


def signs(rows: DataFrame) -> Series:
    """Return the factor of each row after which higher values of its quality are better: 1 or -1."""
    return rows.quality.map(lambda name: QUALITIES[name].sign).astype(int)


def is_reference(strategy: str) -> bool:
    """Return whether the strategy is a reference, which uses all old data or one network per task."""
    return strategy in REFERENCES


def pareto_front(learning: Sequence[float], forgetting: Sequence[float]) -> list[int]:
    """Return the positions on the Pareto front of high learning accuracy and low forgetting, by ascending learning accuracy.

    Where lower values are better, ``learning`` is negated.

    >>> pareto_front(learning=[0.9, 0.8, 0.7], forgetting=[0.3, 0.1, 0.2])
    [1, 0]
    """
    front: list[int] = []
    for i in sorted(range(len(learning)), key=lambda i: (-learning[i], forgetting[i])):
        if not front or forgetting[i] < forgetting[front[-1]]:
            front.append(i)
    return front[::-1]


def paired_differences(
    runs: DataFrame, rows: DataFrame, metrics: Sequence[str] = ("average_accuracy", "forgetting")
) -> DataFrame:
    """Return the differences a - b of the pairs of the best ``rows`` of a benchmark with at least five shared seeds.

    The columns are ``benchmark, a, b, seeds`` and, for each metric, ``M`` (mean over seeds), ``M_ci`` (half-width of the
    Student t interval) and ``M_p`` (two-sided paired t-test, not corrected for multiple comparisons). The largest
    differences come first.
    """
    groups = runs[runs.status == "complete"].groupby(SETUP_KEYS)
    differences = []
    for benchmark, setups in rows.groupby("benchmark", sort=False):
        best = setups.setup.head(MAX_PAIRED)
        by_seed = {setup: groups.get_group((benchmark, setup)).set_index("seed") for setup in best}
        for a, b in combinations(best, 2):
            runs_a, runs_b = by_seed[a], by_seed[b]
            seeds = runs_a.index.intersection(runs_b.index)
            if len(seeds) < MIN_PAIRED_SEEDS:
                continue
            row = {"benchmark": benchmark, "a": a, "b": b, "seeds": len(seeds)}
            for metric in metrics:
                row |= paired_difference(runs_a.loc[seeds, metric] - runs_b.loc[seeds, metric], metric)
            differences.append(row)
    columns = ["benchmark", "a", "b", "seeds", *(f"{metric}{end}" for metric in metrics for end in ("", "_ci", "_p"))]
    frame = DataFrame(differences, columns=columns)
    return frame.sort_values(metrics[0], key=abs, ascending=False, ignore_index=True)


def paired_difference(by_seed: Series, metric: str) -> dict[str, float]:
    """Return mean, half-width of the interval and p of the paired t-test of differences, nan where undefined."""
    n, mean, std = by_seed.count(), by_seed.mean(), by_seed.std()
    p = np.nan  # the test is undefined if all differences are equal
    if std > 0:
        p = 2 * stdtr(n - 1, -abs(mean) / (std / np.sqrt(n)))
    return {metric: mean, f"{metric}_ci": float(half_width(np.array(std), np.array(n))), f"{metric}_p": float(p)}
