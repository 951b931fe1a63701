"""The number of metrics.json that a run is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

from clbench.errors import ConfigError
from clbench.metrics.registry import load_metrics


def objective(metrics: Mapping[str, Any], key: str, extra: Iterable[str] = ()) -> float | None:
    """Return the number of metrics.json under a dotted ``key``; without validation data, the same on test data.

    A metric that did not exist when the run was finished is computed from its accuracies.

    Args:
        metrics: Contents of metrics.json.
        key: ``validation.average_accuracy`` for example.
        extra: ``metrics.extra`` of the configuration, metrics of the user by dotted path.

    Raises:
        ConfigError: there is no such number.
    """
    *path, name = key.split(".")
    if path[:1] == ["validation"] and metrics.get("validation") is None:
        path = path[1:]
    part: Any = metrics
    for inner in path:
        part = part.get(inner) if isinstance(part, dict) else None
    value = part.get(name, "") if isinstance(part, dict) else ""
    if value == "" and isinstance(part, dict) and "accuracy_matrix" in part:
        metric = load_metrics(extra).get(name)
        if metric is not None and metric.function is not None:
            value = metric.read_from(part)
            value = None if isnan(value) else value
    if not isinstance(value, int | float | None):
        raise ConfigError(
            f"objective={key} is not a number of metrics.json: use for example validation.average_accuracy"
        )
    return value
