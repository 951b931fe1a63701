"""Arguments of the objects that a configuration describes: their names in Python and on the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.errors import ConfigError, Unstable

NOT_ARGUMENTS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys that Hydra reads itself."""

SAID_AS = {
    "trainer.max_epochs": "epochs",
    "trainer.max_steps": "steps",
    "data.batch_size": "batch_size",
    "data.scenario": "scenario",
}
"""Arguments of Lightning's Trainer and of our sequence that stand elsewhere in the configuration, under these names."""


def arguments_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Return the keyword arguments that a class or function takes, by name.

    A constructor that passes ``**options`` on takes those of the next class in the order of inheritance as well.

    Returns:
        None if it takes any name, or Python does not say.
    """
    found: dict[str, inspect.Parameter] = {}
    passes_on = isinstance(target, type) and "__new__" in {name for cls in target.__mro__[:-1] for name in vars(cls)}
    for function in _constructors(target):
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # of a builtin
            return None
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for p in parameters[isinstance(target, type) :]:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        if not passes_on:
            break
    return None if passes_on else found


def _constructors(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that take the arguments of ``target``, in the order in which they pass them on."""
    if not isinstance(target, type):
        return [target]
    return [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]


def target_of(node: Any) -> Callable[..., Any] | None:
    """Return what ``_target_`` of a configuration names, None if there is none or it cannot be imported."""
    if not isinstance(node, DictConfig) or (path := node.get("_target_")) is None:
        return None
    from hydra.utils import get_object  # reading runs needs no Hydra

    try:
        found: Callable[..., Any] = get_object(path)
    except Exception:  # the import runs code of the user's; instantiating it reports why it fails
        return None
    return found


def connections(cfg: DictConfig, group: str, names: Iterable[str]) -> dict[str, set[str]]:
    """Return which of the top-level options ``names`` each argument of ``cfg[group]`` depends on.

    An argument depends on an option if its resolved value changes with it. So every way to write an interpolation counts:
    ``${lam}``, ``${ lam }``, ``${oc.select:lam}``, ``${..lam}``, or one that leads there through another key.
    """
    raw = OmegaConf.to_container(OmegaConf.select(cfg, group), resolve=False)
    found: dict[str, set[str]] = {str(key): set() for key, value in raw.items() if "${" in str(value)}  # type: ignore[union-attr]
    if not found:
        return {}
    probe = cfg.copy()
    OmegaConf.set_readonly(probe, False)
    before = {key: _outcome(probe, group, key) for key in found}
    with open_dict(probe):
        for name in names:
            probe[name] = f"another {name}"
            for key, options in found.items():
                if (after := _outcome(probe, group, key)) != before[key]:
                    options.add(name)
                    before[key] = after
    return found


def _outcome(cfg: DictConfig, group: str, key: str) -> Any:
    """The resolved value of an argument, or why it cannot be resolved."""
    try:
        value = OmegaConf.select(cfg, group)[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except Exception as error:  # also of a resolver that does arithmetic on an option
        return repr(error)


AS_TYPED = {"None": "null", "True": "true", "False": "false"}
"""Values in Python -> the same values on the command line."""


@contextmanager
def errors_as_typed(cfg: DictConfig) -> Iterator[None]:
    """Put the keys of the command line in place of Python arguments in an error of a strategy or of the data.

    The library raises ``damping=-1: ...``, for whoever wrote ``SI(damping=-1)``; here it becomes ``strategy.damping=-1: ...``.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__  # of what was raised inside hydra.utils.instantiate
        for found in (error, cause):
            if isinstance(found, ConfigError | Unstable) and found.group:
                raise type(found)(as_typed(str(found), cfg, found.group)) from error
        raise


def as_typed(text: str, cfg: DictConfig, group: str) -> str:
    """Return ``text`` with the arguments of ``cfg[group]`` under the names that a user types."""
    keys = typed_keys(cfg, group)
    if not keys:
        return text
    names = "|".join(sorted(map(re.escape, keys), key=len, reverse=True))
    text = re.sub(rf"(?<![\w.])({names})=", lambda match: f"{keys[match[1]]}=", text)
    return re.sub(rf"(?<![\w./\\])({'|'.join(AS_TYPED)})(?![\w/\\])", lambda match: AS_TYPED[match[1]], text)


def typed_keys(cfg: DictConfig, group: str) -> dict[str, str]:
    """Return the name on the command line of each argument of ``cfg[group]``.

    That is the top-level option to which the yaml connects the argument (``lam``), else its place (``strategy.damping``). The
    arguments of what it is given (``data.split.order``) are among them where their names are no others.
    """
    node = OmegaConf.select(cfg, group)
    top = [str(key) for key in cfg if not OmegaConf.is_config(cfg._get_node(str(key)))]
    connected = connections(cfg, group, top)
    keys = {}
    for name in _names(node):
        place = f"{group}.{name}"
        keys[name] = next(iter(sorted(connected.get(name, ()))), SAID_AS.get(place, place))
    for part, inner in node.items():
        for name in _names(inner):
            keys.setdefault(name, f"{group}.{part}.{name}")
    return keys


def _names(node: Any) -> list[str]:
    """The arguments of what a node describes."""
    if not isinstance(node, DictConfig):
        return []
    target = target_of(node)
    takes = (None if target is None else arguments_of(target)) or {}
    return [name for name in dict.fromkeys([*takes, *map(str, node)]) if name not in NOT_ARGUMENTS]
