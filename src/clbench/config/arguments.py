"""Translate between the Python arguments of configured objects and the options of the command line."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.errors import ConfigError, Unstable

NOT_ARGUMENTS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys that Hydra reads itself."""

TOP_LEVEL = {
    "trainer.max_epochs": "epochs",
    "trainer.max_steps": "steps",
    "data.batch_size": "batch_size",
    "data.scenario": "scenario",
    "data.loss": "loss",
}
"""Arguments of Lightning's Trainer and of TaskSequence -> the top-level option that sets them."""


def arguments_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Return the keyword arguments of a class or function, by name.

    If a constructor accepts ``**options``, the arguments of the next class in the method resolution order are included.

    Returns:
        None if every name is accepted, or if the signature is not available.
    """
    found: dict[str, inspect.Parameter] = {}
    passes_on = isinstance(target, type) and "__new__" in {name for cls in target.__mro__[:-1] for name in vars(cls)}
    for function in constructors(target):
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # builtins have no signature
            return None
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for p in parameters[isinstance(target, type) :]:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        if not passes_on:
            break
    return None if passes_on else found


def constructors(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the functions that receive the arguments of ``target``, in the order in which they forward them."""
    if not isinstance(target, type):
        return [target]
    return [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]


def target_nodes(node: Any, key: str) -> Iterator[tuple[str, DictConfig]]:
    """Yield the dotted key and the node of each object (``_target_``) in ``node``, which is stored under ``key``."""
    if not OmegaConf.is_config(node) or node._is_none():
        return
    if isinstance(node, DictConfig) and "_target_" in node:
        yield key, node
    names: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        yield from target_nodes(node._get_node(name), f"{key}.{name}")


def key_of(node: DictConfig, key: str) -> str:
    """Return the option that sets ``key`` of ``node``: another one if its value is a reference, as in ``lr: ${lr}``."""
    raw = node._get_node(key.rpartition(".")[2])
    match = re.fullmatch(r"[$][{](\w+)[}]", str(raw._value())) if OmegaConf.is_interpolation(raw) else None  # type: ignore[union-attr]
    return key if match is None else match[1]


def target_of(node: Any) -> Callable[..., Any] | None:
    """Return the object that ``_target_`` of a configuration names, None without one or if it cannot be imported."""
    if not isinstance(node, DictConfig) or not isinstance(path := node.get("_target_"), str):
        return None
    from hydra.utils import get_object  # imported late, because reading runs needs no Hydra

    if (log := logging.getLogger("hydra.utils")).level != logging.CRITICAL:
        log.setLevel(logging.CRITICAL)  # it prints several lines in addition to the error
    try:
        found: Callable[..., Any] = get_object(path)
    except Exception:  # the import runs user code, whose errors are reported when the object is instantiated
        return None
    return found


def connections(cfg: DictConfig, group: str, names: Iterable[str]) -> dict[str, set[str]]:
    """Return which of the top-level options ``names`` each argument of ``cfg[group]`` depends on.

    An argument depends on an option if its resolved value changes with the option. This covers every way to write an
    interpolation: ``${lam}``, ``${ lam }``, ``${oc.select:lam}``, ``${..lam}``, or a reference through another key.
    """
    raw = OmegaConf.to_container(OmegaConf.select(cfg, group), resolve=False)
    found: dict[str, set[str]] = {str(key): set() for key, value in raw.items() if "${" in str(value)}  # type: ignore[union-attr]
    if not found:
        return {}
    probe = cfg.copy()
    OmegaConf.set_readonly(probe, False)
    current = {key: _resolve(probe, group, key) for key in found}
    with open_dict(probe):
        for name in names:
            probe[name] = f"another {name}"
            for key, options in found.items():
                if (changed := _resolve(probe, group, key)) != current[key]:
                    options.add(name)
                    current[key] = changed
    return found


def _resolve(cfg: DictConfig, group: str, key: str) -> str:
    """Return the resolved value of an argument as text, in which nan equals nan, or the error if it cannot be resolved."""
    try:
        value = OmegaConf.select(cfg, group)[key]
        return repr(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
    except Exception as error:  # a resolver may also fail, for example on arithmetic with an option
        return repr(error)


LEARNER = {
    "reset_optimizer": "optimizer.reset",
    "scheduler_interval": "scheduler.interval",
    "scheduler_length": "scheduler.length",
}
"""Arguments of a Learner, which no group of the configuration describes -> the options that set them."""

YAML_VALUES = {"None": "null", "True": "true", "False": "false"}
"""Python values -> the same values on the command line."""


def as_typed(value: Any) -> str:
    """Return a plain value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_typed(inner)}' for key, inner in value.items())}}}"
    return YAML_VALUES.get(str(value), str(value))


@contextmanager
def translate_errors(cfg: DictConfig) -> Iterator[None]:
    """Replace Python arguments by command-line options in the errors of strategies, data, scenarios and learners.

    ``SI(damping=-1)`` raises ``damping=-1: ...``. On the command line the same error reads ``strategy.damping=-1: ...``.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__  # hydra.utils.instantiate wraps the original error
        for found in (error, cause):
            if isinstance(found, ConfigError | Unstable) and found.group:
                raise type(found)(translate(str(found), cfg, found.group)) from error
        raise


def translate(text: str, cfg: DictConfig, group: str) -> str:
    """Return ``text`` with the Python arguments of ``cfg[group]`` replaced by their command-line options."""
    keys = option_keys(cfg, group)
    if not keys:
        return text
    names = "|".join(sorted(map(re.escape, keys), key=len, reverse=True))
    text = re.sub(rf"(?<![\w.])({names})=", lambda match: f"{keys[match[1]]}=", text)
    return re.sub(rf"(?<![\w./\\])({'|'.join(YAML_VALUES)})(?![\w/\\])", lambda match: YAML_VALUES[match[1]], text)


def option_keys(cfg: DictConfig, group: str) -> dict[str, str]:
    """Return the command-line option of each Python argument of ``cfg[group]``.

    The option is the top-level option that the yaml refers to (``lam``), or else the dotted key (``strategy.damping``). The
    arguments of nested objects (``data.split.order``) are included unless another argument has the same name.
    """
    if group == "learner":
        return LEARNER
    node = OmegaConf.select(cfg, group)
    top = [str(key) for key in cfg if not isinstance(cfg._get_node(str(key)), DictConfig)]
    connected = connections(cfg, group, top)
    keys = {}
    for name in _names(node):
        dotted = f"{group}.{name}"
        options = connected.get(name, set())
        keys[name] = name if name in options else next(iter(sorted(options)), TOP_LEVEL.get(dotted, dotted))
    for part, inner in node.items():
        for name in _names(inner):
            keys.setdefault(name, f"{group}.{part}.{name}")
    return keys


def _names(node: Any) -> list[str]:
    """Return the argument names of the object that a node describes."""
    if not isinstance(node, DictConfig):
        return []
    target = target_of(node)
    takes = (None if target is None else arguments_of(target)) or {}
    return [name for name in dict.fromkeys([*takes, *map(str, node)]) if name not in NOT_ARGUMENTS]
