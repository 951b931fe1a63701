"""Registry of metrics. metrics.json, logs, reports, tables and docs are derived from its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clbench.errors import ConfigError
from clbench.metrics import extra, formulas
from clbench.metrics.formulas import Array, MidTaskEvaluation
from clbench.metrics.metric import Function, Metric, Results
from clbench.metrics.quality import ACCURACY, QUALITIES, Quality, quality_of
from clbench.metrics.results import learned_tasks, read_evaluations, read_matrix


def _format_seconds(value: float) -> str:
    """Format seconds, with one decimal below 100."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _format_bytes(value: float) -> str:
    """Format a number of bytes with a unit: 1.5 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _mean_over_tasks(key: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        values = [task.get(key) for task in results.get("per_task") or []]
        return None if not values or None in values else float(np.mean(values))

    return read


def _read_validation_average(results: Results) -> float | None:
    return (results.get("validation") or {}).get(quality_of(results).key("average_accuracy"))


def _make_seconds(name: str, heading: str, meaning: str, shown: tuple[str, ...] = ()) -> Metric:
    return Metric(
        f"seconds_{name}",
        meaning,
        read=lambda results: (results.get("seconds") or {}).get(name),
        unit="seconds",
        format=_format_seconds,
        heading=heading,
        shown=shown,
    )


_RECORDS = (
    Metric(
        "average_accuracy",
        "mean over tasks at the end",
        formula="mean_j R[T-1][j]",
        function=formulas.average_accuracy,
        higher_is_better=True,
        shown=("run", "terminal", "tex"),
        is_quality=True,
    ),
    Metric(
        "incremental_accuracy",
        "mean over the tasks learned so far, averaged over training",
        formula="mean_i mean_{j<=i} R[i][j]",
        source="Rebuffi et al. 2017",
        function=formulas.incremental_accuracy,
        higher_is_better=True,
        is_quality=True,
    ),
    Metric(
        "learning_accuracy",
        "mean over tasks, each right after it was learned",
        formula="mean_i R[i][i]",
        function=formulas.learning_accuracy,
        higher_is_better=True,
        shown=("run", "tex"),
        is_quality=True,
    ),
    Metric(
        "forgetting",
        "how much worse the accuracy on a task is at the end than at its best before the last task; undefined for one task",
        formula="mean_{j<T-1} ( max_{j<=i<=T-2} R[i][j] - R[T-1][j] )",
        source="Chaudhry et al. 2018",
        function=formulas.forgetting,
        higher_is_better=False,
        shown=("run", "terminal", "tex"),
    ),
    Metric(
        "backward_transfer",
        "improvement of the accuracy on a task from when it was learned to the end; undefined for one task",
        formula="mean_{j<T-1} ( R[T-1][j] - R[j][j] )",
        source="Lopez-Paz and Ranzato 2017",
        function=formulas.backward_transfer,
        higher_is_better=True,
        shown=("run",),
    ),
    Metric(
        "forward_transfer",
        "improvement of the accuracy on a task over that of the untrained network, just before the task is learned; only if "
        "tasks share outputs (domain-incremental)",
        formula="mean_{j>=1} ( R[j-1][j] - b[j] )",
        source="Lopez-Paz and Ranzato 2017",
        function=formulas.forward_transfer,
        higher_is_better=True,
        shown=("run",),
        needs_shared_outputs=True,
    ),
    Metric(
        "min_accuracy",
        "worst accuracy on a task at any evaluation after it was learned; during later tasks only with eval_every",
        formula="mean_{j<T-1} min_{i>j} R[i][j]",
        source="De Lange et al. 2023",
        function=formulas.min_accuracy,
        higher_is_better=True,
        is_quality=True,
    ),
    Metric(
        "worst_case_accuracy",
        "weighted mean of the accuracy on the last task and the worst accuracy on the others",
        formula="R[T-1][T-1] / T + (1 - 1/T) min_accuracy",
        source="WC-ACC of De Lange et al. 2023",
        function=formulas.worst_case_accuracy,
        higher_is_better=True,
        heading="worst case",
        is_quality=True,
    ),
    Metric(
        "stability_gap",
        "how much worse the accuracy on an earlier task j becomes at most while task i is learned; needs eval_every",
        formula="mean_{j<i} ( R[i-1][j] - min_{inside i} accuracy on j )",
        source="De Lange et al. 2023",
        function=formulas.stability_gap,
        higher_is_better=False,
    ),
    Metric(
        "intransigence",
        "how much worse the accuracy right after learning a task is than in the reference run R*, of the same benchmark and "
        "seed: joint_from_scratch, else joint, else independent",
        formula="mean_j ( R*[j][j] - R[j][j] )",
        source="Chaudhry et al. 2018",
        read=lambda results: None,
        higher_is_better=False,
        shown=("terminal", "tex"),
    ),
    Metric(
        "nll",
        "final negative log-likelihood, mean over tasks",
        read=_mean_over_tasks("nll"),
        higher_is_better=False,
        unit="nats",
    ),
    Metric(
        "ece",
        "final expected calibration error with 15 equal-width bins and the L1 norm, mean over tasks",
        source="Guo et al. 2017",
        read=_mean_over_tasks("ece"),
        higher_is_better=False,
    ),
    Metric(
        "validation_average_accuracy",
        "average accuracy on validation data, on which lam is selected",
        read=_read_validation_average,
        higher_is_better=True,
        heading="validation accuracy",
        shown=("run",),
        is_quality=True,
    ),
    _make_seconds("total", "seconds", "seconds of the whole run, including reading data", shown=("terminal",)),
    _make_seconds("train", "training", "seconds of the task loop without importance and evaluation"),
    _make_seconds("importance", "importance", "seconds of measuring importance"),
    _make_seconds("evaluation", "evaluation", "seconds of evaluation"),
    Metric(
        "bytes",
        "bytes of importance that the strategy stores, maximum over tasks",
        read=lambda results: max((task.get("bytes") or 0 for task in results.get("importance") or []), default=None),
        unit="bytes",
        format=_format_bytes,
        heading="importance size",
    ),
)

BUILT_IN = {metric.name: metric for metric in _RECORDS}
"""Built-in metrics by name, in the order of columns."""

BY_KEY = {metric.key(quality): metric for quality in QUALITIES.values() for metric in _RECORDS}
"""Built-in metrics by their keys in metrics.json in runs of any quality: ``average_accuracy`` and ``average_quality``."""

_registered: dict[str, Metric] = {}


def register(function: Function) -> Function:
    """Register a metric in this process, for example as a decorator.

    >>> @register
    ... def worst_task(matrix):
    ...     "lowest accuracy on a task at the end"
    ...     return matrix[-1].min()
    >>> load_metrics()["worst_task"].meaning
    'lowest accuracy on a task at the end'
    >>> _ = _registered.pop("worst_task")  # remove the metric again after this example

    Raises:
        ConfigError: The function is not a metric, or another metric has its name.
    """
    metric = extra.make_metric(function, f"register({getattr(function, '__name__', function)})")
    _registered.pop(metric.name, None)  # so that a notebook cell can run again
    _registered[metric.name] = _unused(metric, load_metrics())
    return function


def load_metrics(paths: Iterable[str] = ()) -> dict[str, Metric]:
    """Return all metrics by name, in the order of columns.

    These are the built-in metrics, those of installed packages (entry points of the group ``clbench.metrics``), those added by
    ``register``, and those of ``paths``. Custom metrics come after the built-in metrics that are computed from R.

    Args:
        paths: Dotted paths of functions, the option ``metrics.extra``.

    Raises:
        ConfigError: A metric cannot be imported, is not valid, or has the name of another.

    >>> list(load_metrics())[:2]
    ['average_accuracy', 'incremental_accuracy']
    """
    users: dict[str, Metric] = {}
    for metric in (*extra.from_entry_points(), *_registered.values(), *extra.from_paths(paths)):
        if metric.name not in users or users[metric.name].function is not metric.function:
            users[metric.name] = _unused(metric, BUILT_IN | users)
    return _in_order(users)


def metrics_of(descriptions: Iterable[Mapping[str, Mapping[str, object]] | None]) -> dict[str, Metric]:
    """Return the metrics of finished runs: those of this process, and those that a metrics.json describes.

    The described metrics need no import, so a report does not need their functions.

    Args:
        descriptions: ``extra_metrics`` of each metrics.json, None where it has none.
    """
    users = {name: metric for name, metric in load_metrics().items() if name not in BUILT_IN}
    for described in descriptions:
        for name, about in (described or {}).items():
            if name not in BUILT_IN:
                users.setdefault(name, extra.from_description(name, about))
    return _in_order(users)


def records_of(quality: Quality, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return ``metrics`` for runs of ``quality``. Metrics of the user are unchanged, see ``Metric.of`` for the others."""
    return {name: metric.of(quality) if name in BUILT_IN else metric for name, metric in metrics.items()}


def summarize(
    metrics: Mapping[str, Metric],
    matrix: Array,
    initial: Array | None = None,
    mid_task: Sequence[MidTaskEvaluation] = (),
    shares_outputs: bool = False,
    quality: Quality = ACCURACY,
) -> dict[str, float | None]:
    """Return the metrics that are computed from R, by key. Undefined metrics, and all if R contains nan, are None.

    Args:
        metrics: Records by name. Those without a function are left out.
        matrix: R (T, T), nan where nothing was evaluated yet.
        initial: b (T,), the quality of the untrained network, None if undefined.
        mid_task: Evaluations during tasks.
        shares_outputs: Whether all tasks have the same outputs (domain-incremental).
        quality: Quality of the values, which determines the keys and which values are better.

    >>> summarize({"forgetting": BUILT_IN["forgetting"]}, [[0.9, 0.1], [0.4, 0.8]])
    {'forgetting': 0.5}
    """
    r, b = np.asarray(matrix, dtype=float), None if initial is None else np.asarray(initial, dtype=float)
    computed = {metric.key(quality): metric for metric in metrics.values() if metric.function is not None}
    if learned_tasks(r) < len(r):
        return dict.fromkeys(computed)
    return {key: metric.compute_or_explain(r, b, mid_task, shares_outputs, quality) for key, metric in computed.items()}


def add_metrics(results: Mapping[str, Any], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the metrics.json of a finished run with the missing ``metrics``, computed from its accuracies or other qualities."""
    quality, validation = quality_of(results), results["validation"]
    missing = {
        name: metric
        for name, metric in metrics.items()
        if metric.function is not None and metric.key(quality) not in results
    }
    shares_outputs = results["data"]["scenario"] == "domain"
    more = {"extra_metrics": (results.get("extra_metrics") or {}) | describe_extra(missing)}
    if validation is not None:
        r = read_matrix(validation, quality)
        of_validation = summarize(missing, r, shares_outputs=shares_outputs, quality=quality)
        more["validation"] = {**validation, **of_validation}
    added = summarize(missing, *read_evaluations(results, quality), shares_outputs, quality)
    return {**results, **added, **more}


def describe_extra(metrics: Mapping[str, Metric]) -> dict[str, dict[str, object]]:
    """Return the descriptions of the custom metrics for metrics.json, see ``metrics_of``."""
    return {name: extra.describe(metric) for name, metric in metrics.items() if name not in BUILT_IN}


def _in_order(users: Mapping[str, Metric]) -> dict[str, Metric]:
    computed = [metric for metric in _RECORDS if metric.function is not None]
    others = [metric for metric in _RECORDS if metric.function is None]
    return {metric.name: metric for metric in (*computed, *users.values(), *others)}


def _unused(metric: Metric, others: Mapping[str, Metric]) -> Metric:
    if metric.name in others:
        raise ConfigError(f"metric {metric.name}: another metric has this name. Rename the function.")
    return metric
