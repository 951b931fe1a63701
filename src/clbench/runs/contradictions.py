"""Find numbers in metrics.json that its own accuracy matrix contradicts, because the file was edited or damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.registry import BUILT_IN, summarize

TOLERANCE = 1e-9  # the same formula may round differently on another machine

FROM_R = ("average_accuracy", "incremental_accuracy", "learning_accuracy", "forgetting", "backward_transfer")
"""Metrics that need only the accuracy matrix."""

MALFORMED = (TypeError, ValueError, AttributeError)
"""What a computation raises if a value in metrics.json has another type or another shape. ConfigError is a ValueError."""


def contradictions(metrics: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each number in the contents of metrics.json that contradicts the accuracy matrix there.

    Metrics of the user are not recomputed, because their functions may have changed.

    >>> contradictions({"accuracy_matrix": [[0.9, 0.1], [0.6, 0.8]], "average_accuracy": 0.9})
    ['average_accuracy is 0.9, but the accuracy matrix gives 0.7']
    """
    matrix = _matrix(metrics)
    if matrix is None:
        return ["accuracy_matrix: expected a row of T accuracies or nulls for each of T tasks"]
    found = [*_sizes(metrics, len(matrix)), *_values(metrics, matrix)]
    if (validation := metrics.get("validation")) is not None:
        if not isinstance(validation, Mapping) or (other := _matrix(validation)) is None or len(other) != len(matrix):
            return [*found, "validation.accuracy_matrix: expected as many tasks as accuracy_matrix"]
        # the untrained net and the net inside a task are evaluated on test data only
        of_validation = {"initial_accuracy": [None], "within_tasks": [], "data": metrics.get("data"), **validation}
        found += [f"validation.{text}" for text in _values(of_validation, other)]
    return found


def _matrix(results: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the accuracy matrix (T, T), None if it is not one."""
    try:
        matrix = np.array(results["accuracy_matrix"], dtype=float)
    except (KeyError, TypeError, ValueError):
        return None
    return matrix if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0 else None


def _sizes(metrics: Mapping[str, Any], tasks: int) -> Iterator[str]:
    """Yield contradictions of the number of tasks."""
    data = metrics.get("data")
    described: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    lists = {
        "data.classes": described.get("classes"),
        "data.examples": described.get("examples"),
        "initial_accuracy": metrics.get("initial_accuracy"),
        "per_task": metrics.get("per_task") or None,  # empty until the last task is learned
    }
    counts = {"data.tasks": described.get("tasks", tasks)}
    counts |= {name: len(values) for name, values in lists.items() if isinstance(values, list)}
    for name, count in counts.items():
        if count != tasks:
            yield f"{name} has {count} tasks, but the accuracy matrix has {tasks}"


def _values(results: Mapping[str, Any], matrix: NDArray[np.float64]) -> Iterator[str]:
    """Yield contradictions of the status, the accuracies and the metrics."""
    done = int(np.isfinite(matrix).all(axis=1).sum())
    if not np.isfinite(matrix[:done]).all():
        yield "accuracy_matrix: expected the learned tasks before the others"
    if not (np.isnan(matrix) | ((matrix >= 0) & (matrix <= 1))).all():
        yield "accuracy_matrix: expected accuracies between 0 and 1"
    if results.get("status") in ("complete", "partial") and done < len(matrix):
        yield f"status is {results['status']}, but the accuracy matrix has {done} of {len(matrix)} tasks"
    for j, task in enumerate(results.get("per_task") or []):
        accuracy = task.get("accuracy") if isinstance(task, Mapping) else None
        final = matrix[-1, j] if j < len(matrix) and np.isfinite(matrix[-1, j]) else None
        if not _equal(accuracy, final):
            yield f"per_task[{j}].accuracy is {accuracy}, but the accuracy matrix gives {final}"
    yield from _metrics(results, matrix)


def _metrics(results: Mapping[str, Any], matrix: NDArray[np.float64]) -> Iterator[str]:
    """Yield contradictions of the metrics that are computed from accuracies."""
    checked = {name: metric for name, metric in BUILT_IN.items() if metric.function is not None and name in results}
    if not results.keys() >= {"initial_accuracy", "within_tasks", "data"}:  # a file of an older version
        checked = {name: metric for name, metric in checked.items() if name in FROM_R}
    try:
        initial = np.array(results.get("initial_accuracy"), dtype=float)
        within = [MidTaskEvaluation(**evaluation) for evaluation in results.get("within_tasks") or []]
        shares_outputs = (results.get("data") or {}).get("scenario") == "domain"
        initials = initial if np.isfinite(initial).all() else None
        expected = summarize(checked, matrix, initials, within, shares_outputs)
    except MALFORMED as error:
        yield f"the metrics cannot be computed from the accuracies in the file ({error})"
        return
    for name, value in expected.items():
        if not _equal(results[name], value):
            shown = "null" if value is None else f"{value:.6g}"
            yield f"{name} is {results[name]}, but the accuracy matrix gives {shown}"


def _equal(stored: Any, expected: float | None) -> bool:
    """Return whether a stored number is equal to the expected one. None is an undefined number."""
    if stored is None or expected is None:
        return stored is expected
    is_number = isinstance(stored, int | float) and not isinstance(stored, bool)
    return is_number and isclose(stored, expected, abs_tol=TOLERANCE)
