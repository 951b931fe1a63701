"""Options of strategies: what a value may be, said in one way. Each gives the value back, or raises a ConfigError.

``key`` is what a user writes on the command line (``lam``, ``strategy.damping``), ``what`` says what the value is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from clbench.errors import ConfigError


def strength(key: str, value: Any, what: str = "the strength of a term") -> float:
    """A number >= 0 that is finite in float32."""
    if not (_is_number(value) and 0 <= value <= torch.finfo(torch.float32).max):
        raise ConfigError(f"{key}={value}: {what} is a finite number >= 0, at most 3.4e38")
    return float(value)


def positive(key: str, value: Any, what: str, hint: str = "") -> float:
    """A finite number > 0; ``hint`` says which is usual."""
    if not (_is_number(value) and value > 0):
        raise ConfigError(f"{key}={value}: {what} is a finite number > 0{hint and '; ' + hint}")
    return float(value)


def fraction(key: str, value: Any, what: str) -> float:
    """A number in [0, 1]."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise ConfigError(f"{key}={value}: {what} is in [0, 1]")
    return float(value)


def whole(key: str, value: Any, what: str = "it", least: int = 1) -> int:
    """A whole number, at least ``least``."""
    if isinstance(value, bool) or not (isinstance(value, int) and value >= least):
        raise ConfigError(f"{key}={value}: {what} is a whole number, at least {least}")
    return value


def one_of(key: str, value: Any, choices: Sequence[str]) -> str:
    """One of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{key}={value!r} is not one of {', '.join(choices)}")
    return str(value)


def flag(key: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key}={value!r} is not true or false")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
