"""The number of metrics.json that a run is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.errors import ConfigError


def objective(metrics: Mapping[str, Any], key: str) -> float | None:
    """The number of metrics.json under a dotted ``key``; without validation data, the same on test data.

    Raises:
        ConfigError: there is no such number.
    """
    parts = key.split(".")
    if parts[0] == "validation" and metrics["validation"] is None:
        parts = parts[1:]
    value: Any = metrics
    for part in parts:
        value = value.get(part, "") if isinstance(value, dict) else ""
    if not isinstance(value, int | float | None):
        raise ConfigError(
            f"objective={key} is not a number of metrics.json: use for example validation.average_accuracy"
        )
    return value
