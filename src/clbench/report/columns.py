"""The metrics of a report, each declared once: heading, meaning, number format, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pandas import DataFrame

from clbench.runs.names import REFERENCES


class Column(NamedTuple):
    """A metric: its heading, its meaning, the function that formats a value, and the better direction if it has one."""

    heading: str
    meaning: str
    format: Callable[[float], str]
    better: Literal["higher", "lower"] | None = None


def format_fraction(value: float) -> str:
    """Format an accuracy or a difference of two accuracies."""
    return f"{value:z.3f}"  # z: no -0.000


def format_seconds(value: float) -> str:
    """Format seconds, with one decimal below 100."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def format_bytes(value: float) -> str:
    """Format a number of bytes with a unit: 1.5 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


COLUMNS = {
    "average_accuracy": Column(
        "average accuracy", "mean over tasks at the end: mean_j R[T-1][j]", format_fraction, "higher"
    ),
    "learning_accuracy": Column(
        "learning accuracy",
        "mean over tasks, each right after it was learned: mean_i R[i][i]",
        format_fraction,
        "higher",
    ),
    "forgetting": Column(
        "forgetting",
        "mean over j < T-1 of max over j <= i <= T-2 of R[i][j], minus R[T-1][j] (Chaudhry et al. 2018)",
        format_fraction,
        "lower",
    ),
    "backward_transfer": Column(
        "backward transfer",
        "mean over j < T-1 of R[T-1][j] - R[j][j] (Lopez-Paz and Ranzato 2017)",
        format_fraction,
        "higher",
    ),
    "forward_transfer": Column(
        "forward transfer",
        "mean over j >= 1 of R[j-1][j] - b[j], where b is the accuracy of the untrained net",
        format_fraction,
        "higher",
    ),
    "min_accuracy": Column(
        "min accuracy",
        "mean over j < T-1 of the lowest accuracy on j at any evaluation after it was learned (De Lange et al. 2023); "
        "evaluations are after each task only, unless the runs have eval_every",
        format_fraction,
        "higher",
    ),
    "worst_case_accuracy": Column(
        "worst case", "R[T-1][T-1] / T + (1 - 1/T) min accuracy (De Lange et al. 2023)", format_fraction, "higher"
    ),
    "stability_gap": Column(
        "stability gap",
        "mean of R[i-1][j] - lowest accuracy on j while task i is learned; needs eval_every",
        format_fraction,
        "lower",
    ),
    "intransigence": Column(
        "intransigence",
        "mean_j R*[j][j] - R[j][j], where R* is from the run of the same benchmark and seed of joint_from_scratch, else joint, "
        "else independent (Chaudhry et al. 2018)",
        format_fraction,
        "lower",
    ),
    "nll": Column("nll", "final negative log-likelihood in nats, mean over tasks", format_fraction, "lower"),
    "ece": Column(
        "ece",
        "final expected calibration error with 15 equal-width bins and the L1 norm, mean over tasks",
        format_fraction,
        "lower",
    ),
    "validation_average_accuracy": Column(
        "validation", "average accuracy on validation data, on which lam is selected", format_fraction, "higher"
    ),
    "seconds_total": Column("seconds", "the whole run, including reading data", format_seconds),
    "seconds_train": Column(
        "training", "seconds of the task loop that are neither importance nor evaluation", format_seconds
    ),
    "seconds_importance": Column("importance", "seconds of measuring importance", format_seconds),
    "seconds_evaluation": Column("evaluation", "seconds of evaluation", format_seconds),
    "bytes": Column(
        "importance size", "bytes of importance that the strategy stores, maximum over tasks", format_bytes
    ),
}
METRICS = tuple(COLUMNS)


def format_mean(row: Any, metric: str) -> tuple[str, str]:
    """Return the mean of a metric and the half-width of its interval as text, "" for a number that is undefined."""
    column, mean, half = COLUMNS[metric], getattr(row, metric), getattr(row, f"{metric}_ci")
    return (
        "" if math.isnan(mean) else column.format(mean),
        "" if math.isnan(half) or metric == "bytes" else column.format(half),
    )


def format_interval(row: Any, metric: str) -> str:
    """Format an accuracy as 0.873 ± 0.011, or as 0.873 if it is of one seed."""
    mean, half = format_mean(row, metric)
    return f"{mean} ± {half}" if half else mean


def filled_metrics(rows: DataFrame) -> list[str]:
    """Return the metrics that at least one row has, without those that are 0 in every row (bytes of rehearsal)."""
    return [name for name in METRICS if rows[name].notna().any() and not (rows[name].fillna(0) == 0).all()]


def find_best_setups(rows: DataFrame) -> dict[str, str]:
    """Return the setup with the best mean of each metric.

    References are excluded, and so are metrics that fewer than two setups have.
    """
    ordinary = rows[~rows.strategy.isin(REFERENCES)].set_index("setup")
    best = {}
    for name, column in COLUMNS.items():
        values = ordinary[name].dropna()
        if column.better is not None and len(values) > 1:
            best[name] = str(values.idxmax() if column.better == "higher" else values.idxmin())
    return best
