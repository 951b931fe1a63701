"""Custom metrics: functions from ``metrics.extra`` or installed packages, or descriptions in a metrics.json.

def worst_task(matrix):
    "lowest accuracy on a task at the end"
    return matrix[-1].min()

worst_task.higher_is_better = True  # optional, as is worst_task.format = ".1%"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from inspect import getdoc, signature
from keyword import iskeyword
from pkgutil import resolve_name
from typing import Any

import numpy as np

from clbench.errors import ConfigError
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.metric import INPUTS, Function, Metric

GROUP = "clbench.metrics"
"""Group of the entry points that are metrics: ``[project.entry-points."clbench.metrics"]`` in a pyproject.toml."""

RESERVED = {
    *("accuracy_matrix", "initial_accuracy", "per_task", "within_tasks", "validation", "extra_metrics"),
    *("quality", "quality_matrix", "initial_quality", "average_quality", "incremental_quality", "learning_quality"),
    *("min_quality", "worst_case_quality", "validation_average_quality"),
    *("strategy", "data", "net", "seed", "eval_every", "config_hash", "machine", "versions", "status", "schema"),
    *("seconds", "importance", "shared_first_task", "warnings", "partial"),
    *("folder", "problem", "scenario", "tasks", "chance", "overrides", "config", "options"),
    *("benchmark", "method", "setup", "lam", "gamma", "fisher", "samples", "fisher_batch", "memory"),
    *("seeds", "selected", "oracle", "lam_count", "Index"),
}
"""Names that metrics.json, the columns of ``clbench.read`` or those of a report already use."""

EVERYWHERE = ("run", "terminal", "tex")


def from_paths(paths: Iterable[str]) -> list[Metric]:
    """Return the metrics of ``metrics.extra``, dotted paths of functions."""
    if isinstance(paths, str) or not isinstance(paths, Iterable):
        raise ConfigError(f"metrics.extra={paths}: expected a list of functions. Try metrics.extra=[{paths}].")
    return [make_metric(_import(str(path), f"metrics.extra=[{path}]"), f"metrics.extra=[{path}]") for path in paths]


@cache
def from_entry_points() -> tuple[Metric, ...]:
    """Return the metrics of the installed packages, sorted by name. A function with two entry points counts once."""
    found = {}
    for point in sorted(entry_points(group=GROUP)):
        origin = f"entry point {point.name} = {point.value} of {GROUP}"
        found[point.value] = make_metric(_import(point.value, origin), origin)
    return tuple(found.values())


def from_description(name: str, about: Mapping[str, Any]) -> Metric:
    """Return the record of a metric that a metrics.json describes, see ``describe``. It has no function."""
    return Metric(
        name,
        str(about.get("meaning", "")),
        higher_is_better=about.get("higher_is_better"),
        unit="",
        format=str(about.get("format", "z.3f")),
        shown=EVERYWHERE,
    )


def describe(metric: Metric) -> dict[str, Any]:
    """Return the description of a metric for metrics.json, which ``from_description`` reads."""
    return {"meaning": metric.meaning, "higher_is_better": metric.higher_is_better, "format": metric.format}


def make_metric(function: Function, origin: str) -> Metric:
    """Return the record of a user's function.

    The metric has the name of the function, and its meaning is the first line of the docstring. The function may have the
    attributes ``higher_is_better`` (True, False or None) and ``format`` (a format specification such as ".1%").

    Args:
        function: Function of any of ``INPUTS`` that returns a number, or None where the metric is undefined.
        origin: Origin of the function, for messages.

    Raises:
        ConfigError: The function, its name or an attribute is not valid, or it fails on a small example.
    """
    name = getattr(function, "__name__", "")
    if not callable(function) or not name.isidentifier():
        raise ConfigError(f"{origin}: expected a function, got {function!r}.")
    if not is_free(name):
        raise ConfigError(f"{origin}: {name} is already a key of metrics.json or a column. Rename the function.")
    try:
        parameters = list(signature(function).parameters)
    except (TypeError, ValueError):  # builtins
        parameters = ["unknown"]
    if "matrix" not in parameters or not set(parameters) <= set(INPUTS):
        raise ConfigError(
            f"{origin}: expected parameters named matrix, initial and mid_task (the last two may be left out), got "
            f"({', '.join(parameters)}). Try def {name}(matrix, initial, mid_task)."
        )
    metric = Metric(
        name,
        (getdoc(function) or "").partition("\n")[0].rstrip("."),
        function=function,
        higher_is_better=getattr(function, "higher_is_better", None),
        unit="",
        format=getattr(function, "format", "z.3f"),
        shown=EVERYWHERE,
    )
    _check(metric, origin)
    return metric


def is_free(name: str) -> bool:
    """Return whether a metric may have this name: an attribute of a row of a table, with an interval ``NAME_ci``."""
    is_attribute = name.isidentifier() and not iskeyword(name) and not name.startswith("_")
    return is_attribute and name not in RESERVED and not name.endswith("_ci")


def is_description(name: str, about: Any) -> bool:
    """Return whether the value ``about`` of a metrics.json describes a metric that tables can show."""
    if not isinstance(about, dict) or not is_free(name) or about.get("higher_is_better") not in (True, False, None):
        return False
    try:
        return bool(format(0.5, str(about.get("format", "z.3f"))))
    except ValueError:
        return False


def _import(path: str, origin: str) -> Any:
    try:
        return resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{origin} cannot be imported: {error}. Try module.function, of a module in this folder or installed."
        ) from error


def _check(metric: Metric, origin: str) -> None:
    """Check the attributes, and the function on small accuracy matrices, before training."""
    if metric.higher_is_better not in (True, False, None):
        raise ConfigError(f"{origin}: higher_is_better={metric.higher_is_better!r}: expected True, False or None.")
    try:
        format(0.5, metric.format)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigError(f'{origin}: format={metric.format!r}: expected a specification such as ".3f".') from None
    for matrix in (np.ones((1, 1)), np.zeros((2, 2)), np.array([[0.9, 0.2, 0.1], [0.8, 0.9, 0.3], [0.7, 0.8, 0.6]])):
        tasks = len(matrix)
        inside = [MidTaskEvaluation(task, 1, matrix[task].tolist()) for task in range(tasks)]
        for initial, mid_task in ((None, []), (np.full(tasks, 0.1), inside)):
            try:
                metric.compute(matrix, initial, mid_task, shares_outputs=True)
            except Exception as error:
                raise ConfigError(
                    f"{origin}: {metric.name} fails on the accuracies {matrix.tolist()}, initial {initial}: "
                    f"{type(error).__name__}: {error}. Return a number, or None where the metric is undefined."
                ) from error
