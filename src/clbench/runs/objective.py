"""Compute the objective of a run: the number in metrics.json that sweeps show and searches optimise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

from clbench.errors import ConfigError
from clbench.metrics.registry import add_metrics, load_metrics
from clbench.runs.folder import RunFolder


def objective(metrics: Mapping[str, Any], key: str, extra: Iterable[str] = ()) -> float | None:
    """Return the number in metrics.json with a dotted ``key``. Without validation data, the metric on test data is used.

    A metric that metrics.json does not contain is computed from the accuracies.

    Args:
        metrics: Contents of metrics.json.
        key: Dotted key, such as ``validation.average_accuracy``.
        extra: ``metrics.extra`` of the configuration, dotted paths of metrics of the user.

    Raises:
        ConfigError: No number has this key.
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
            f"objective={key}: expected the key of a number in metrics.json. Try objective=validation.average_accuracy."
        )
    return value


def add_new_metrics(
    folder: RunFolder, results: dict[str, Any], extra: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Add metrics that metrics.json of a finished run lacks; return its new contents and the names of the added metrics.

    Args:
        folder: The run's folder.
        results: Contents of metrics.json.
        extra: ``metrics.extra`` of the configuration.
    """
    complete = add_metrics(results, load_metrics(extra))
    added = sorted(complete.keys() - results.keys())
    if added or not (folder.path / "accuracy_matrix.csv").exists():
        folder.write_metrics(complete)
    return complete, added
