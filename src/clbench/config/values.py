"""Check the values of options before a run starts: by the rules of the options below, and by the annotations of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from clbench.config.arguments import (
    NOT_ARGUMENTS,
    arguments_of,
    as_typed,
    constructors,
    key_of,
    target_nodes,
    target_of,
)
from clbench.errors import ConfigError

LARGEST = 2**63 - 1  # the largest integer of torch


class Range(NamedTuple):
    """Limits of a number, both included; None for no limit."""

    least: float | None = None
    most: float | None = None

    def contains(self, value: Any) -> bool:
        """Return whether ``value`` is a number within the limits."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        return f"from {self.least} to {self.most}" if self.most is not None else f">= {self.least}"


Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Strength = Annotated[float, Range(0)]
PerTask = Count | Sequence[Count]

RULES: dict[str, Any] = {
    "seed": Index,
    "epochs": PerTask,
    "steps": PerTask | None,
    "patience": Count | None,
    "eval_every": Count | None,
    "batch_size": Count,
    "lr": Strength | None,
    "threads": Annotated[int, Range(1, 1024)] | None,  # a million threads end the process with signal 11
    "log_every": Count,
    "save_every": Count | None,
    "stop_after_task": Count | None,
    "select_lam_on_first_tasks": Count | None,
    **dict.fromkeys(("consolidate", "eval_tasks", "loss", "bn", "checkpoints", "data_dir", "objective"), str),
    "init_from": str | None,
    **dict.fromkeys(("metrics.extra", "net.freeze"), Sequence[str]),
    **dict.fromkeys(("compile", "share_first_task", "dry_run", "data.drop_last"), bool),
    "optimizer.reset": bool | Literal["moments"],
    **dict.fromkeys(("data.seed", "strategy.seed"), Index),
    "net.lora.rank": Count,
    "net.lora.targets": Sequence[str],
    "net.lora.alpha": Count | None,
    "memory": Annotated[int, Range(1, 2**31 - 1)] | None,
    "data.tasks": Annotated[int, Range(1, 10_000)] | None,  # an accuracy matrix of 10,000 tasks takes 800 MB
    "data.workers": Annotated[int, Range(0, 1024)] | None,
    "data.memory_limit": Index | None,
    "trainer.accumulate_grad_batches": Count,
    "trainer.gradient_clip_val": Strength | None,
}
"""Rules of the values of options, as types. Strategies check their options themselves, because they also work without Hydra."""

LISTS = (list, tuple, set, Sequence, Collection, Iterable)
NEVER_PLAIN = ("lightning", "datetime")
"""Packages whose classes take no plain value in their place, as ``Path`` takes a string and ``Tensor`` a number."""

PLAIN = {
    NoneType: ("null", "null"),
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a finite number", "finite numbers"),
    str: ("a string", "strings"),
}
"""Types of plain values -> their names in singular and plural."""


def check_rule(name: str, value: Any) -> None:
    """Raise ConfigError if ``value`` is not allowed for the option ``name`` of ``RULES``."""
    check_value(name, value, RULES[name])


def check_rules(cfg: DictConfig) -> None:
    """Raise ConfigError if an option that ``cfg`` contains does not follow its rule in ``RULES``."""
    missing = object()
    for name in RULES:
        if (value := OmegaConf.select(cfg, name, default=missing)) is not missing or name in cfg:
            check_rule(name, None if value is missing else value)


OBJECTS = ("data", "scenario", "net", "optimizer", "scheduler", "trainer", "logger")
"""Groups of options whose objects get plain values, without the strategy, which is constructed to be checked."""


def check_annotations(cfg: DictConfig, groups: Iterable[str] = OBJECTS) -> None:
    """Raise ConfigError if an argument of an object in ``groups`` does not fit the annotation of its class or function."""
    for group in groups:
        for key, node in target_nodes(cfg[group], group):
            target = target_of(node)
            types = {} if target is None else annotations_of(target)
            for name in map(str, node):
                if name in types and name not in NOT_ARGUMENTS:
                    check_value(key_of(node, f"{key}.{name}"), node[name], types[name])


def check_value(name: str, value: Any, kind: Any) -> None:
    """Raise ConfigError if ``value`` of the option ``name`` is not of the type ``kind``."""
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if not fits(plain, kind):
        got = repr(plain) if isinstance(plain, str) else as_typed(plain)
        hint = f" The largest integer is {LARGEST}." if isinstance(plain, int) and abs(plain) > LARGEST else ""
        raise ConfigError(f"{name}={as_typed(plain)}: expected {describe(kind)}, got {got}.{hint}")


@lru_cache(maxsize=256)
def annotations_of(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the types of the arguments of a class or function, by name; without those that cannot be evaluated."""
    found: dict[str, Any] = {}
    for function in reversed(constructors(target)):
        try:
            found |= get_type_hints(function, include_extras=True)
        except (NameError, TypeError, AttributeError):  # names that are imported for type checkers only
            continue
    takes = arguments_of(target) or {}
    return {
        name: kind | None if name in takes and takes[name].default is None else kind for name, kind in found.items()
    }


def fits(value: Any, kind: Any) -> bool:
    """Return whether a plain value is of the type ``kind``. Any value but null fits a class outside of ``NEVER_PLAIN``."""
    origin, options = get_origin(kind), get_args(kind)
    if isinstance(value, dict) and "_target_" in value:  # becomes an object
        return not _is_plain_kind(kind)
    if origin is Annotated:
        limits = [limit for limit in options[1:] if isinstance(limit, Range)]
        return fits(value, options[0]) and all(limit.contains(value) for limit in limits)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if kind in PLAIN:
        return _is_plain(value, kind)
    if (origin or kind) is Callable:
        return False
    if (origin or kind) in LISTS:
        return _fits_list(value, kind)
    if (origin or kind) in (dict, Mapping):
        return isinstance(value, dict)
    return _fits_class(value, kind)


def _fits_list(value: Any, kind: Any) -> bool:
    """Return whether ``value`` is a list of the right length, with values of the right type."""
    options = get_args(kind)
    if not isinstance(value, list) or _length(kind) not in (None, len(value)):
        return False
    return all(fits(each, options[0] if options else Any) for each in value)


def _fits_class(value: Any, kind: Any) -> bool:
    """Return whether a plain value may stand for an object of the class ``kind``."""
    if kind in (Any, object):
        return True
    if isinstance(kind, type) and kind.__module__.partition(".")[0] in NEVER_PLAIN:
        return False
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _length(kind: Any) -> int | None:
    """Return the number of values of a tuple such as ``tuple[float, float]``, None for other types."""
    options = get_args(kind)
    return len(options) if get_origin(kind) is tuple and Ellipsis not in options else None


def _is_plain_kind(kind: Any) -> bool:
    """Return whether a type has only plain values and lists of them, so that no object can be such a value."""
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        return _is_plain_kind(options[0])
    if get_origin(kind) in (Union, UnionType, *LISTS):
        return all(map(_is_plain_kind, options))
    return kind in PLAIN or get_origin(kind) is Literal


def _is_plain(value: Any, kind: type) -> bool:
    """Return whether a value is of one of the types of ``PLAIN``: true is no number, nan no finite one, and "" no string."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, kind) and (not isinstance(value, str) or bool(value.strip()))


def describe(kind: Any, plural: bool = False) -> str:
    """Return the values that ``fits`` accepts, in words."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join([describe(options[0], plural), *(str(limit) for limit in options[1:])])
    if origin in (Union, UnionType):
        texts = [describe(option, plural) for option in options if option is not int or float not in options]
        return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
    if origin is Literal:
        return ("one of " if len(options) > 1 else "") + ", ".join(map(str, options))
    if kind in PLAIN:
        return PLAIN[kind][plural]
    if (origin or kind) in LISTS:
        number = "" if (length := _length(kind)) is None else f"{length} "
        return "a list" + (f" of {number}{describe(options[0], plural=True)}" if options else "")
    if (origin or kind) is Callable:
        return "objects with the key _target_" if plural else "an object with the key _target_"
    return "keys and values" if (origin or kind) in (dict, Mapping) else str(getattr(kind, "__name__", kind))
