"""Columns of report tables: metrics with values, best setups, and means with intervals as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pandas import DataFrame

from clbench.metrics.metric import Metric
from clbench.metrics.quality import QUALITIES, Quality
from clbench.metrics.registry import BUILT_IN
from clbench.runs.names import REFERENCES

Metrics = Mapping[str, Metric]


def quality_of_rows(rows: DataFrame) -> Quality:
    """Return the quality of the runs or setups of one benchmark, which has exactly one."""
    return QUALITIES[rows.quality.iloc[0]]


def format_mean(row: Any, metric: Metric) -> tuple[str, str]:
    """Return the mean of a metric and the half-width of its interval as text, "" where undefined."""
    mean, half = getattr(row, metric.name), getattr(row, f"{metric.name}_ci")
    return (
        "" if math.isnan(mean) else metric.text(mean),
        "" if math.isnan(half) or metric.unit == "bytes" else metric.text(half),
    )


def format_interval(row: Any, name: str) -> str:
    """Format a built-in metric as 0.873 ± 0.011, or as 0.873 for a single seed."""
    mean, half = format_mean(row, BUILT_IN[name])
    return f"{mean} ± {half}" if half else mean


def filled_metrics(rows: DataFrame, metrics: Iterable[Metric]) -> list[Metric]:
    """Return the metrics with a value in at least one row, without bytes that are 0 in every row."""
    filled = [metric for metric in metrics if rows[metric.name].notna().any()]
    return [metric for metric in filled if metric.unit != "bytes" or rows[metric.name].any()]


def find_best_setups(rows: DataFrame, metrics: Iterable[Metric]) -> dict[str, set[str]]:
    """Return the setups whose mean is printed as the best one of each metric, by the metric's name.

    References are excluded, and so are metrics without a better direction and those that fewer than two setups have.
    """
    ordinary = rows[~rows.strategy.isin(REFERENCES)].set_index("setup")
    best = {}
    for metric in metrics:
        values = ordinary[metric.name].dropna()
        if metric.higher_is_better is not None and len(values) > 1:
            texts = values.map(metric.text)
            winner = values.idxmax() if metric.higher_is_better else values.idxmin()
            best[metric.name] = {str(setup) for setup in texts.index[texts == texts[winner]]}
    return best
