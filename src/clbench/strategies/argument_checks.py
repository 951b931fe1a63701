"""Checks of the arguments of strategies. Each returns the value or raises a StrategyError with value, rule and remedy.

``name`` is the Python argument (``damping``). ``clbench.config.arguments`` replaces it by the option of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from clbench.errors import StrategyError, expected

Strength = float | Sequence[float]
"""The factor of a loss term, or one for each task."""


def check_strength(name: str, value: Any) -> float:
    """Return the factor of a loss term, a number >= 0 that is finite in float32."""
    if not (_is_number(value) and 0 <= value <= torch.finfo(torch.float32).max):
        raise StrategyError(expected(name, value, "a finite number >= 0, at most 3.4e38"))
    return float(value)


def check_strength_per_task(name: str, value: Any) -> float | tuple[float, ...]:
    """Return the factor of a loss term, or the factors of the tasks if ``value`` is a list."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return check_strength(name, value)
    return tuple(check_strength(name, each) for each in value)


def check_tasks(name: str, value: float | tuple[float, ...], tasks: int) -> None:
    """Raise StrategyError if ``value`` is a list that has not one entry for each of ``tasks`` tasks."""
    if isinstance(value, tuple) and len(value) != tasks:
        raise StrategyError(
            expected(
                name,
                list(value),
                f"a number, or a list of {tasks}, one for each task",
                f"Try {name}={max(value, default=1.0):g}.",
            )
        )


def check_positive(name: str, value: Any, hint: str = "") -> float:
    """Return a finite number > 0. ``hint`` names the usual value."""
    if not (_is_number(value) and value > 0):
        raise StrategyError(expected(name, value, "a finite number > 0", hint))
    return float(value)


def check_fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1]."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise StrategyError(expected(name, value, "a number in [0, 1]"))
    return float(value)


def check_integer(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """Return an integer >= ``least``."""
    if isinstance(value, bool) or not (isinstance(value, int) and value >= least):
        raise StrategyError(expected(name, value, f"an integer >= {least}", hint))
    return value


def check_integer_or_none(name: str, value: Any, hint: str = "") -> int | None:
    """Return None or an integer >= 1."""
    if value is None:
        return None
    if isinstance(value, bool) or not (isinstance(value, int) and value >= 1):
        raise StrategyError(expected(name, value, "an integer >= 1 or None", hint))
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of ``choices``."""
    if value not in choices:
        raise StrategyError(expected(name, value, f"one of {', '.join(choices)}"))
    return str(value)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise StrategyError(expected(name, value, "True or False"))
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
