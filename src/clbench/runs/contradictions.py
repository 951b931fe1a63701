"""Find numbers in metrics.json that its own matrix R contradicts, because the file was edited or damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.metrics.quality import Quality, quality_of
from clbench.metrics.registry import BUILT_IN, summarize
from clbench.metrics.results import learned_tasks, read_evaluations, read_matrix
from clbench.runs.json_files import QUALITY, mismatch

TOLERANCE = 1e-9  # the same formula may round differently on another machine

FROM_R = ("average_accuracy", "incremental_accuracy", "learning_accuracy", "forgetting", "backward_transfer")
"""Names of metrics that need only R."""

MALFORMED = (TypeError, ValueError, AttributeError, KeyError)
"""What a computation raises if a value in metrics.json has another type or another shape. ConfigError is a ValueError."""


def contradictions(metrics: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each number in the contents of metrics.json that contradicts the matrix R there.

    Metrics of the user are not recomputed, because their functions may have changed.

    >>> contradictions({"accuracy_matrix": [[0.9, 0.1], [0.6, 0.8]], "average_accuracy": 0.9})
    ['average_accuracy is 0.9, but the accuracy matrix gives 0.7']
    """
    if (unknown := mismatch(metrics, {"quality?": QUALITY})) is not None:
        return [unknown]
    quality = quality_of(metrics)
    key = quality.key("accuracy_matrix")
    matrix = _matrix(metrics, quality)
    if matrix is None:
        return [f"{key}: expected a row of T {_values_of(quality)} or nulls for each of T tasks"]
    found = [*_sizes(metrics, quality, len(matrix)), *_values(metrics, quality, matrix)]
    if metrics.get("quality_matrix", metrics[key]) != metrics[key]:
        found.append(f"quality_matrix differs from {key}")
    if (validation := metrics.get("validation")) is not None:
        other = _matrix(validation, quality) if isinstance(validation, Mapping) else None
        if other is None or len(other) != len(matrix):
            return [*found, f"validation.{key}: expected as many tasks as {key}"]
        # the untrained net and the net inside a task are evaluated on test data only
        untested = {quality.key("initial_accuracy"): [None], "within_tasks": [], "data": metrics.get("data")}
        found += [f"validation.{text}" for text in _values({**untested, **validation}, quality, other)]
    return found


def _values_of(quality: Quality) -> str:
    """Return the name of several values of ``quality``."""
    return "accuracies" if quality.name == "accuracy" else f"values of {quality.label}"


def _matrix(results: Mapping[str, Any], quality: Quality) -> NDArray[np.float64] | None:
    """Return R (T, T), None if it is not a matrix."""
    try:
        matrix = read_matrix(results, quality)
    except (KeyError, TypeError, ValueError):
        return None
    return matrix if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0 else None


def _sizes(metrics: Mapping[str, Any], quality: Quality, tasks: int) -> Iterator[str]:
    """Yield contradictions of the number of tasks."""
    data = metrics.get("data")
    described: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    lists = {
        "data.classes": described.get("classes"),
        "data.examples": described.get("examples"),
        (initial := quality.key("initial_accuracy")): metrics.get(initial),
        "per_task": metrics.get("per_task") or None,  # empty until the last task is learned
    }
    counts = {"data.tasks": described.get("tasks", tasks)}
    counts |= {name: len(values) for name, values in lists.items() if isinstance(values, list)}
    for name, count in counts.items():
        if count != tasks:
            yield f"{name} has {count} tasks, but the {quality.label} matrix has {tasks}"


def _values(results: Mapping[str, Any], quality: Quality, matrix: NDArray[np.float64]) -> Iterator[str]:
    """Yield contradictions of the status, the values in R and the metrics."""
    key = quality.key("accuracy_matrix")
    done = learned_tasks(matrix)
    if learned_tasks(matrix[:done]) < done:
        yield f"{key}: expected the learned tasks before the others"
    if not (np.isnan(matrix) | ((matrix >= 0) & (matrix <= (1 if quality.is_share else np.inf)))).all():
        yield f"{key}: expected {_values_of(quality)} {'between 0 and 1' if quality.is_share else 'of at least 0'}"
    if results.get("status") in ("complete", "partial") and done < len(matrix):
        yield f"status is {results['status']}, but the {quality.label} matrix has {done} of {len(matrix)} tasks"
    name = quality.key("accuracy")
    for j, task in enumerate(results.get("per_task") or []):
        stored = task.get(name) if isinstance(task, Mapping) else None
        final = matrix[-1, j] if j < len(matrix) and np.isfinite(matrix[-1, j]) else None
        if not _equal(stored, final):
            yield f"per_task[{j}].{name} is {stored}, but the {quality.label} matrix gives {final}"
    yield from _metrics(results, quality)


def _metrics(results: Mapping[str, Any], quality: Quality) -> Iterator[str]:
    """Yield contradictions of the metrics that are computed from R."""
    checked = {
        name: metric
        for name, metric in BUILT_IN.items()
        if metric.function is not None and metric.key(quality) in results
    }
    if not results.keys() >= {quality.key("initial_accuracy"), "within_tasks", "data"}:  # a file of an older version
        checked = {name: metric for name, metric in checked.items() if name in FROM_R}
    try:
        shares_outputs = (results.get("data") or {}).get("scenario") == "domain"
        expected = summarize(checked, *read_evaluations(results, quality), shares_outputs, quality)
    except MALFORMED as error:
        yield f"the metrics cannot be computed from the {_values_of(quality)} in the file ({error})"
        return
    for name, value in expected.items():
        if not _equal(results[name], value):
            shown = "null" if value is None else f"{value:.6g}"
            yield f"{name} is {results[name]}, but the {quality.label} matrix gives {shown}"


def _equal(stored: Any, expected: float | None) -> bool:
    """Return whether a stored number is equal to the expected one. None is an undefined number."""
    if stored is None or expected is None:
        return stored is expected
    is_number = isinstance(stored, int | float) and not isinstance(stored, bool)
    return is_number and isclose(stored, expected, abs_tol=TOLERANCE)
