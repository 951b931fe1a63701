"""Read JSON files that another program may have changed, and check their types, so that readers can rely on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clbench.errors import ConfigError
from clbench.metrics.quality import QUALITIES, Quality, quality_of
from clbench.metrics.registry import BUILT_IN


class Leaf(NamedTuple):
    """A rule for a value, and the function that returns whether a value follows it."""

    rule: str
    follows: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return whether ``value`` is None, nan, or a number that fits into a float64. Booleans are not numbers."""
    return value is None or (type(value) in (int, float) and (value != value or abs(value) < 1e300))


ANYTHING = Leaf("a value", lambda value: True)
NOTHING = Leaf("no further keys", lambda value: False)
NUMBER = Leaf("a finite number or null", is_number)
COUNT = Leaf("a whole number", lambda value: type(value) is int and abs(value) < 2**63)
TEXT = Leaf("a text", lambda value: isinstance(value, str))

Shape = Leaf | list[Any] | dict[str, Any]
"""A rule, ``[shape]`` for a list, or ``{key: shape}`` for an object.

A key ``name?`` may be missing or null, and ``*`` is the shape of the keys that are not listed, by default ``ANYTHING``.
"""

RUNNING, COMPLETE, PARTIAL = "running", "complete", "partial"
STATUSES = (RUNNING, COMPLETE, PARTIAL)
"""Status of a run: it has not ended, it has learned all its tasks, or it has learned them on a part of their batches or steps.

A partial run counts in no mean.
"""

QUALITY = Leaf(
    f"a quality with its direction: {', '.join(f'{each.name} ({each.direction})' for each in QUALITIES.values())}",
    lambda value: (
        isinstance(value, dict) and any(each.describe().items() <= value.items() for each in QUALITIES.values())
    ),
)
"""Rule for the entry ``quality`` of metrics.json, which ``quality_of`` reads."""


def metrics_shape(quality: Quality) -> dict[str, Shape]:
    """Return the shape of metrics.json of a run of ``quality``."""
    key = quality.key
    return {
        **{f"{metric.key(quality)}?": NUMBER for metric in BUILT_IN.values()},
        "status": Leaf(f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES),
        "quality_matrix?": [[NUMBER]],
        key("accuracy_matrix"): [[NUMBER]],
        key("initial_accuracy?"): [NUMBER],
        "per_task?": [{key("accuracy?"): NUMBER, "nll?": NUMBER, "ece?": NUMBER}],
        "within_tasks?": [{"task": COUNT, "step": COUNT, key("accuracy"): [NUMBER], "*": NOTHING}],
        "validation?": {key("accuracy_matrix"): [[NUMBER]], key("average_accuracy?"): NUMBER},
        "data?": {"classes?": [[ANYTHING]], "tasks?": COUNT, "scenario?": TEXT},
        "seconds?": {"*": NUMBER},
        "importance?": [{"bytes?": COUNT}],
        "warnings?": [{"kind": TEXT, "text": TEXT}],
        "versions?": {"*": TEXT},
        "machine?": {"*": TEXT},
        "config_hash?": TEXT,
        "partial?": [TEXT],
    }


REMEDY = "Restore the file, or remove it and rerun the command of its run."


def read_metrics_of_any_version(folder: Path) -> dict[str, Any]:
    """Return the contents of metrics.json in a run folder.

    Raises:
        FileNotFoundError: The file does not exist.
        ConfigError: The file cannot be read, or a value that clbench reads has another type.
    """
    content: dict[str, Any] = read_json(folder / "metrics.json", {"quality?": QUALITY})
    quality = quality_of(content)
    problem = mismatch(content, metrics_shape(quality))
    if problem is None:
        key = quality.key("accuracy_matrix")
        matrix = content[key]
        if not matrix or any(len(row) != len(matrix) for row in matrix):
            problem = f"{key}: expected T rows of T numbers"
    if problem is not None:
        raise ConfigError(f"metrics.json cannot be read: {problem}. {REMEDY}")
    return content


def read_json(file: Path, shape: Shape) -> Any:
    """Return the contents of a JSON file of the given shape.

    Raises:
        FileNotFoundError: The file does not exist.
        ConfigError: The file cannot be read, is not JSON, or has another shape.
    """
    try:
        if not file.is_file() and file.exists():  # reading a pipe or a device could block
            raise OSError("expected a file, found a folder or a device")
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ConfigError(f"{file.name} cannot be read: {reason}. {REMEDY}") from error
    if (problem := mismatch(content, shape)) is not None:
        raise ConfigError(f"{file.name} cannot be read: {problem.removeprefix(': ')}. {REMEDY}")
    return content


def mismatch(value: Any, shape: Shape) -> str | None:
    """Return the first place at which ``value`` does not have the given shape, None if there is none.

    >>> mismatch({"a": [1, None, "x"]}, {"a": [NUMBER]})
    "a[2]: expected a finite number or null, got 'x'"
    """
    if isinstance(shape, Leaf):
        return None if shape.follows(value) else _expected(shape.rule, value)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected("a list", value)
        return next((f"[{i}]{found}" for i, each in enumerate(value) if (found := mismatch(each, shape[0]))), None)
    if not isinstance(value, dict):
        return _expected("an object", value)
    for key, expected in shape.items():
        name = key.removesuffix("?")
        if key != "*" and value.get(name) is None:
            if name == key:
                return f"{name} is missing"
        elif key != "*" and (found := mismatch(value[name], expected)):
            return _inside(name, found)
    listed = {key.removesuffix("?") for key in shape}
    others = ((key, inner) for key, inner in value.items() if "*" in shape and key not in listed)
    return next((_inside(key, found) for key, inner in others if (found := mismatch(inner, shape["*"]))), None)


def _inside(key: str, found: str) -> str:
    return f"{key}{found}" if found.startswith(("[", ":")) else f"{key}.{found}"


def _expected(rule: str, value: Any) -> str:
    shown = repr(value)
    return f": expected {rule}, got {shown if len(shown) <= 40 else f'{shown[:40]}...'}"
