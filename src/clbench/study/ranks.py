"""Statistics of a study with parts, whose rows compete: ranks, critical difference, and paired differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, studentized_range

from clbench.metrics.interval import half_width
from clbench.runs.names import REFERENCES
from clbench.study.collect import final_cells

Row = Mapping[str, Any]
"""Row of study.json."""


class Difference(NamedTuple):
    """Mean of paired differences over ``n`` shared seeds, with the half-width of its 95 % Student t interval (nan for n < 2)."""

    mean: float
    half: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is above or below 0, else 0."""
        return int(math.copysign(1, self.mean)) if abs(self.mean) > self.half else 0


def method_of(row: Row) -> str:
    """Return the name of a row without that of its part."""
    return str(row["name"]).removeprefix(f"{row['part']}, ")


def in_part(found: Mapping[str, Any], part: str) -> dict[str, Row]:
    """Return the rows of a part by method."""
    return {method_of(row): row for row in found["rows"] if row.get("part") == part}


def methods_of(found: Mapping[str, Any]) -> list[str]:
    """Return the methods of all parts: by their mean rank, then those without one in the order of the rows."""
    ranks = all_ranks(found)
    methods = dict.fromkeys(method_of(row) for row in found["rows"] if row.get("part"))
    return sorted(methods, key=lambda method: fmean(ranks.get(method, [math.inf])))


def by_seed(row: Row, metric: str) -> dict[int, float]:
    """Return the values of the final runs at the chosen point by seed."""
    return {seed: cell["values"][metric] for seed, cell in final_cells(row).items()}


def ranks_in(found: Mapping[str, Any], part: str, methods: Iterable[str]) -> dict[str, list[float]]:
    """Return the ranks of ``methods`` in a part, one per shared seed. The highest value of the first metric has rank 1.

    Equal values share the mean of their ranks.
    """
    metric = next(iter(found["metrics"]))
    rows = in_part(found, part)
    values = {method: by_seed(rows[method], metric) for method in methods}
    seeds = sorted(set.intersection(*map(set, values.values())))
    ranks = rankdata([[-each[seed] for seed in seeds] for each in values.values()], axis=0)
    return dict(zip(values, ranks.tolist(), strict=True))


def competing(found: Mapping[str, Any]) -> list[str]:
    """Return the methods that are in all parts, without references, which may use more data or more nets."""
    parts = [in_part(found, part) for part in found["parts"]]
    return [method for method in parts[0] if method not in REFERENCES and all(method in rows for rows in parts)]


def all_ranks(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the ranks of the ``competing`` methods, one per part and seed."""
    methods = competing(found)
    of_parts = [ranks_in(found, part, methods) for part in found["parts"]]
    return {method: [rank for ranks in of_parts for rank in ranks[method]] for method in methods}


def critical_difference(methods: int, number: float) -> float:
    """Return the smallest difference of two mean ranks that is significant at .05 for all pairs together (Nemenyi test).

    It is q sqrt(k (k + 1) / (6 N)), where q is the .95 quantile of the studentised range of k means, divided by the root of 2
    (Demsar 2006, Statistical Comparisons of Classifiers over Multiple Data Sets, section 3.2.2).

    Args:
        methods: Number k of methods.
        number: Number N of blocks, in each of which all methods are ranked.

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    quantile = studentized_range.ppf(0.95, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * number)))


def paired(ours: Row, other: Row, metric: str) -> Difference:
    """Return ours - other over the seeds that both rows have."""
    mine, theirs = by_seed(ours, metric), by_seed(other, metric)
    differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    spread = stdev(differences) if len(differences) > 1 else math.nan
    return Difference(
        fmean(differences) if differences else math.nan,
        float(half_width(spread, len(differences))),
        len(differences),
    )
