"""Compute the objective of a run: the number in metrics.json that sweeps show and searches optimise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

from clbench.errors import ConfigError
from clbench.metrics.quality import Quality, quality_of
from clbench.metrics.registry import BY_KEY, add_metrics, load_metrics
from clbench.runs.folder import CSV_FILES, RunFolder


def objective(metrics: Mapping[str, Any], key: str, extra: Iterable[str] = ()) -> float | None:
    """Return the number in metrics.json with a dotted ``key``. Without validation data, the metric on test data is used.

    A metric that metrics.json does not contain is computed from the accuracies. The names of a metric for accuracies and for
    other qualities are interchangeable: ``validation.average_accuracy`` also finds ``validation.average_quality``.

    Args:
        metrics: Contents of metrics.json.
        key: Dotted key, such as ``validation.average_accuracy``.
        extra: ``metrics.extra`` of the configuration, dotted paths of metrics of the user.

    Raises:
        ConfigError: No number has this key.
    """
    quality = quality_of(metrics)
    *path, typed = key.split(".")
    name = BY_KEY[typed].key(quality) if typed in BY_KEY else typed
    if path[:1] == ["validation"] and metrics.get("validation") is None:
        path = path[1:]
    part: Any = metrics
    for inner in path:
        part = part.get(inner) if isinstance(part, dict) else None
    value = part.get(name, "") if isinstance(part, dict) else ""
    if value == "" and isinstance(part, dict) and quality.key("accuracy_matrix") in part:
        metric = BY_KEY.get(typed) or load_metrics(extra).get(name)
        if metric is not None and metric.function is not None:
            value = metric.read_from({"quality": quality.describe(), **part})
            value = None if isnan(value) else value
    if not isinstance(value, int | float | None):
        raise ConfigError(
            f"objective={key}: expected the key of a number in metrics.json. Try objective=validation.average_accuracy."
        )
    return value


def better_direction(quality: Quality, key: str) -> str | None:
    """Return whether to ``maximize`` or ``minimize`` the objective with a dotted ``key``, None if it has no better direction.

    >>> from clbench.metrics.quality import QUALITIES
    >>> better_direction(QUALITIES["bits_per_byte"], "validation.average_accuracy")
    'minimize'
    """
    metric = BY_KEY.get(key.rpartition(".")[2])
    better = None if metric is None else metric.of(quality).higher_is_better
    return {True: "maximize", False: "minimize", None: None}[better]


def check_direction(quality: Quality, key: str, direction: str | None) -> None:
    """Raise ConfigError if a search would look for the worst value of the objective.

    Args:
        quality: Quality of the run.
        key: Dotted key of the objective.
        direction: ``hydra.sweeper.direction``, None if no search chooses the runs.
    """
    better = better_direction(quality, key)
    if direction in ("maximize", "minimize") and better not in (None, direction):
        side = "higher" if better == "maximize" else "lower"
        raise ConfigError(
            f"hydra.sweeper.direction={direction}: expected {better}, because {side} values of objective={key} are better for "
            f"runs of {quality.label}. Try hydra.sweeper.direction={better}."
        )


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
    if added or not (folder.path / CSV_FILES[quality_of(results).name]).exists():
        folder.write_metrics(complete)
    return complete, added
