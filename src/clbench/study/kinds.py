"""Kinds of values in the yaml of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from clbench.study.plan import text_of


def tuples(value: Any) -> Any:
    """Return a value with tuples instead of lists."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_seeds(value: Any) -> bool:
    return _are(int)(value) and len(set(value)) == len(value) and all(seed >= 0 for seed in value)


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, tuple) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
    )


def _are_factors(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(is_number(v) and v > 1 for v in value.values()))


def _are_grids(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, tuple) and v and len(set(map(text_of, v))) == len(v) for v in value.values()
    )


def are_parts(value: Any) -> bool:
    """Return whether a value is a list of overrides per part."""
    return isinstance(value, dict) and all(map(_are(str), value.values()))


def _are_curves(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(points, tuple)
        and all(isinstance(point, tuple) and len(point) == 2 and all(map(is_number, point)) for point in points)
        for points in value.values()
    )


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and _are(str)((*value, *value.values()))


TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "int | None": (lambda value: value is None or (_are(int)((value,)) and value >= 0), "a number of seeds"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a text"),
    "int": (lambda value: isinstance(value, int) and value > 0, "a positive number of runs"),
    "float": (is_number, "a number"),
    "float | None": (lambda value: value is None or is_number(value), "a number"),
    "tuple[str, ...]": (_are(str), "a list of texts"),
    "Mapping[str, tuple[str, ...]]": (are_parts, "a list of overrides per part"),
    "tuple[int, ...]": (_are_seeds, "a list of different integers >= 0"),
    "Mapping[str, str]": (_are_metrics, "a list of keys of metrics.json, or name: key"),
    "Mapping[str, float] | None": (_are_factors, "a factor above 1 per key"),
    "Mapping[str, tuple[Any, ...]]": (_are_grids, "a list of different values per key"),
    "Mapping[str, tuple[tuple[float, float], ...]]": (_are_curves, "a list of pairs of numbers per metric"),
}
"""Check and description of a value, by the annotation of its field."""
