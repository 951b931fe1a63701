"""Refuse configurations with keys that nothing reads, and without keys that a run needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from clbench.config.arguments import NOT_ARGUMENTS, arguments_of, as_typed, target_nodes, target_of
from clbench.config.declarations import declarations, files, find
from clbench.config.hashing import GROUPS, declared
from clbench.config.known_names import name_at_top_level, option_names, suggest
from clbench.config.options import conf_dir
from clbench.errors import ConfigError

WITHOUT_CLASS = {
    "optimizer": ("reset", "make"),
    "scheduler": ("make", "interval", "length"),
    "metrics": ("extra",),
}
"""Parts of the configuration that describe no object -> their keys."""

OBJECTS = ("data", "scenario", "net", "strategy", "trainer", "optimizer.make")
"""Parts of the configuration that describe an object, and need the key ``_target_``."""

NEEDED = (
    *("data.name", "scenario.name", "optimizer.reset", "optimizer.make", "scheduler.make", "scheduler.interval"),
    *("trainer.accelerator", "trainer.devices", "metrics.extra"),
)
"""Keys inside of groups that every run reads. Every top-level option is read as well."""


PASSED = {
    "data.source": ("train", "download"),
    "data.split": ("source", "tasks", "seed"),
    "net": ("shape",),
    "optimizer.make": ("params",),
    "scheduler.make": ("optimizer",),
}
"""Arguments that clbench passes to an object itself, so that no option may set them."""


OPTIONS_OF_EVERY = {"net": ("freeze", "lora")}
"""Keys that clbench reads in every object of a group, and does not pass to it."""


def check_keys(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Raise ConfigError if ``cfg`` lacks a key that a run needs, or has one that nothing reads.

    At the top level, the options of train.yaml, the keys of the chosen yaml files of clbench, and keys to which another value
    refers are known. An object (``_target_``) has the keys that its class or function takes.

    Args:
        cfg: The configuration, without the key ``hydra``.
        choices: Name of the yaml chosen in each group.
    """
    check_missing(cfg)
    known = {*option_names(), *GROUPS, "metrics", "logger", *declared(tuple((g, str(choices[g])) for g in GROUPS))}
    for key in map(str, cfg.keys() - known):
        if not is_referenced(cfg, key):
            raise ConfigError(unknown(key, cfg._get_node(key), sorted(known)))
    for group, names in WITHOUT_CLASS.items():
        for key in map(str, cfg[group].keys() - set(names)):
            raise ConfigError(unknown(f"{group}.{key}", cfg[group]._get_node(key), [f"{group}.{n}" for n in names]))
    for name in map(str, cfg):
        for key, described in target_nodes(cfg._get_node(name), name):
            check_arguments_of(key, described, choices.get("experiment"))


def check_hydra_keys(hydra: DictConfig) -> None:
    """Raise ConfigError if Hydra's own settings have a key that Hydra does not read, or no processes.

    A sweeper rejects unknown keys itself, and the type of its parts does not list those of a plugin.
    """
    for part in ("", "run", "sweep", "job", "launcher"):
        node = OmegaConf.select(hydra, part) if part else hydra
        kind: Any = OmegaConf.get_type(node)
        if not is_dataclass(kind):
            continue
        names = [field.name for field in fields(kind)]
        names += [] if part else ["env"]  # a yaml of Hydra declares it
        prefix = ".".join(filter(None, ("hydra", part)))
        for name in map(str, node.keys() - set(names)):
            raise ConfigError(unknown(f"{prefix}.{name}", node._get_node(name), [f"{prefix}.{n}" for n in names]))
    for part in ("launcher", "sweeper"):
        if OmegaConf.select(hydra, f"{part}.n_jobs") == 0:
            raise ConfigError(f"hydra.{part}.n_jobs=0: expected a number of processes, or -1 for one per core, got 0.")


def check_missing(cfg: DictConfig) -> None:
    """Raise ConfigError if a key is missing that a run needs, or a part of the configuration describes no object."""
    for group in (*GROUPS, "logger", "metrics"):
        if not has_choice(OmegaConf.select(cfg, group), group):
            choices = ", ".join(file.path.stem for file in files(group)) or "a list metrics.extra=[]"
            raise ConfigError(f"{group}: expected one of {choices}, but the configuration has none.")
    for key in (*option_names(), *NEEDED):
        parent, _, name = key.rpartition(".")
        child = (OmegaConf.select(cfg, parent) if parent else cfg)._get_node(name, validate_access=False)
        if child is not None and child._is_missing():
            raise ConfigError(f"{key}: its value ??? means that it must be given. Add {key}=VALUE.")
        if child is None:
            raise ConfigError(f"~{key}: every run needs the option {key}. Remove ~{key}.")
    objects = [*OBJECTS, *(f"logger.{name}" for name in cfg.logger)]
    for key in objects if cfg.scheduler.make is None else [*objects, "scheduler.make"]:
        if not isinstance(node := OmegaConf.select(cfg, key), DictConfig) or "_target_" not in node:
            got = ", ".join(map(str, node)) or "no keys" if isinstance(node, DictConfig) else repr(node)
            line = "'# @package _global_' as the first line of its yaml, which places its keys lam and strategy at the top level"
            remedy = line if key == "strategy" else "the dotted path of a class"
            raise ConfigError(f"{key}: expected a key _target_, got {got}. Try {remedy}.")


def has_choice(node: Any, group: str) -> bool:
    """Return whether ``node`` has keys of a yaml file of ``group``, and not only the options of every choice."""
    return isinstance(node, DictConfig) and not (group in OPTIONS_OF_EVERY and set(node) <= {*OPTIONS_OF_EVERY[group]})


def check_arguments_of(key: str, node: DictConfig, experiment: str | None = None) -> None:
    """Raise ConfigError if the object that ``node`` describes has a key that its class or function does not take.

    If the yaml of ``experiment`` sets the key, the error says so.
    """
    path = node.get("_target_")
    target = target_of(node)
    is_path = isinstance(path, str) and all(map(str.isidentifier, path.split(".")))
    if not is_path or (target is not None and not callable(target)):
        found = f", got the {type(target).__name__} {path}" if is_path else ""
        raise ConfigError(
            f"{shown(f'{key}._target_', path)}: expected the dotted path of a class, such as my_module.MyClass{found}."
        )
    takes = None if target is None else arguments_of(target)
    passed = PASSED.get(re.sub(r"[.]\d+$", "", key), ())
    for name in map(str, node):
        if name in passed:
            raise ConfigError(
                f"{shown(f'{key}.{name}', node._get_node(name))}: clbench sets this argument. Try ~{key}.{name}."
            )
        if takes is None or name in takes or name in (*NOT_ARGUMENTS, *OPTIONS_OF_EVERY.get(key, ())):
            continue
        full, value = f"{key}.{name}", node._get_node(name)
        hint = "" if OmegaConf.is_interpolation(value) else name_at_top_level(full)
        options = ", ".join(sorted(takes.keys() - set(passed)))
        remedy = f"Try one of {options}." if options else f"Try ~{full}."
        file = find("experiment", str(experiment), [conf_dir()])
        if file is not None and full in declarations(file):
            hint, remedy = f" {file.choice} sets it for another {key.partition('.')[0]}.", f"Try ~{full}."
        raise ConfigError(
            f"{shown(full, value)}: {path} has no option {name}.{hint or suggest(name, list(takes))} {remedy}"
        )


def unknown(key: str, node: Any, names: list[str]) -> str:
    """Return the message for a key that nothing reads, with the most similar of ``names``."""
    while isinstance(node, DictConfig) and len(node):  # launch={foo: 1} was typed as launch.foo=1
        name = str(next(iter(node)))
        key, node = f"{key}.{name}", node._get_node(name)
    hint = name_at_top_level(key) or suggest(key, names)
    return f"{shown(key, node)}: unknown option {key}.{hint} --help lists all options."


def shown(key: str, value: Any) -> str:
    """Return a key and its value, or the node of its value, as they are written on the command line."""
    if isinstance(value, Node):
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value._value()
    return f"{key}={as_typed(value)}"


def is_referenced(cfg: DictConfig, key: str) -> bool:
    """Return whether another value of ``cfg`` refers to the top-level ``key``, as in ``${bits}``."""
    return any(re.search(rf"\b{re.escape(key)}\b", reference) for reference in references(cfg, key))


def references(cfg: DictConfig, key: str) -> Iterator[str]:
    """Yield the interpolations in the values of all top-level keys except for ``key``."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    text = json.dumps({name: value for name, value in raw.items() if name != key}, default=str)
    yield from re.findall(r"[$][{][^}]*[}]", text)
