"""Identify a configuration: by its choices and the options that differ from their defaults, and by a hash of both.

Two hashes with different purposes:

- ``config_hash`` names a run for good. An option at its declared default does not enter it, so a new option changes no
  hash. Strategies, nets, data and the other groups enter by the name of their yaml, so moving a class changes none.
- ``content_hash`` covers every resolved value. It compares configurations within one version of clbench.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config.options import ELSEWHERE, OPTIONS, conf_dir

SCHEMA = 1
"""Version of what a configuration means, and of the files of a run. It enters ``config_hash`` and ``first_task_hash``.

A changed default, a renamed option and a changed meaning raise it and are listed in ``SCHEMA_CHANGES``, so that an old hash
never stands for a new meaning. A new option does not.
"""

SCHEMA_CHANGES = {1: "the first schema"}
"""What each schema changed."""

GROUPS = ("data", "scenario", "net", "optimizer", "scheduler", "strategy", "trainer")
"""Groups whose choice decides the results."""

HOW_DATA_IS_READ = ("data.memory_limit", "data.workers")
"""Options of the data that change how it is read, not what is read."""


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """Return everything in ``cfg`` that decides the results, resolved."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        cfg.data_dir = ""
        cfg.output_dir = ""
        cfg.logger = {}
        for key in HOW_DATA_IS_READ:
            cfg.data.pop(key.removeprefix("data."), None)
        resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items() if key not in ELSEWHERE}


def identity(cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config_hash`` is a hash of.

    Args:
        cfg: A composed configuration.
        choices: The yaml chosen in each of ``GROUPS``, as Hydra's ``runtime.choices`` has them.

    Returns:
        ``schema``, ``choices`` by group, and ``options``: dotted key -> value of each option that differs from the default
        that the chosen yamls declare. ``~`` stands for a declared option that was deleted. The options of a yaml from
        outside the package are all listed, since its defaults may change without a new schema.
    """
    names = {group: str(choices[group]) for group in GROUPS}
    values = _as_numbers(decisive(cfg))
    default = _declared(tuple(names.items()))
    there = dict(_flat(values))
    expected = _expected(default, values)
    options = {
        key: _short_target(key, value)
        for key, value in there.items()
        if key not in expected or _text(expected[key]) != _text(value)
    }
    options |= dict.fromkeys(expected.keys() - there.keys(), "~")
    return {"schema": SCHEMA, "choices": names, "options": options}


def config_hash(cfg: DictConfig, choices: Mapping[str, Any]) -> str:
    """Return the 16 hex digits that name a configuration, see ``identity``."""
    return _hash(identity(cfg, choices))


def content_hash(cfg: DictConfig) -> str:
    """Return 16 hex digits over every resolved value in ``cfg`` that decides the results."""
    return _hash(decisive(cfg))


def first_task_hash(cfg: DictConfig, matters: dict[str, Any]) -> str:
    """Return ``content_hash`` with only those options of the strategy that ``matters`` has, and the schema."""
    return _hash({"schema": SCHEMA} | decisive(cfg) | {"strategy": matters} | dict.fromkeys(OPTIONS))


def derived_keys(cfg: DictConfig) -> dict[str, str]:
    """Return what each option that follows from others refers to: ``{"strategy.lam": "${lam}"}``."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    return {key: value for key, value in _flat(raw) if isinstance(value, str) and "${" in value}


def leaves(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; lists as text, so that values can be compared and counted."""
    for key, inner in _flat(value, prefix):
        yield key, json.dumps(inner) if isinstance(inner, dict | list) else inner


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values; "" stands where there is none."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key, ""), b.get(key, "")) for key in keys if a.get(key, "") != b.get(key, "")}


@lru_cache(maxsize=256)
def _declared(choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the configuration that the package's yamls declare for ``choices``, unresolved.

    A group whose choice is from outside the package is left out, so every option of it counts as changed.
    """
    from clbench.config.compose import compose, without_hydra  # Hydra is not needed to read runs

    folder = conf_dir()
    overrides = [
        f"{group}={choice}" if (folder / group / f"{choice}.yaml").is_file() else f"~{group}"
        for group, choice in choices
    ]
    declared = OmegaConf.to_container(without_hydra(compose(overrides)), resolve=False)
    assert isinstance(declared, dict)
    return {str(key): value for key, value in declared.items() if key not in ELSEWHERE}


def _expected(declared: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the declared values, flat; those that refer to other options resolved with ``values``."""
    flat = {key: value for key, value in _flat(declared) if key not in HOW_DATA_IS_READ}
    refers = {key: value for key, value in flat.items() if "${" in json.dumps(value)}
    resolved = OmegaConf.to_container(OmegaConf.create({**values, "data_dir": "", "_": refers}), resolve=True)
    assert isinstance(resolved, dict)
    return {key: _as_numbers(resolved["_"].get(key, value)) for key, value in flat.items()}


def _flat(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; lists and empty mappings whole."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _text(value: Any) -> str:
    """Return a value as text, in which true and 1 differ."""
    return json.dumps(value, sort_keys=True)


def _short_target(key: str, value: Any) -> Any:
    """Return a class of clbench by its name alone, without the module it is in."""
    if isinstance(value, list):
        return [_short_target(key, v) for v in value]
    if isinstance(value, dict):
        return {k: _short_target(k, v) for k, v in value.items()}
    if key.rpartition(".")[2] == "_target_" and isinstance(value, str) and value.startswith("clbench."):
        return value.rpartition(".")[2]
    return value


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_as_numbers(values), sort_keys=True).encode()).hexdigest()[:16]


def _as_numbers(value: Any) -> Any:
    """Return whole numbers as floats: lam=1000 and lam=1e3 are one configuration."""
    if isinstance(value, dict):
        return {key: _as_numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_as_numbers(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
