"""Hash configurations.

There are two hashes with different purposes:

- ``config_hash`` identifies a run across versions of clbench. It covers the chosen yaml files by name and the options that
  differ from their declared defaults. A new option or a moved class therefore does not change it.
- ``content_hash`` covers every resolved value. It compares configurations within one version of clbench.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clbench.config.options import ELSEWHERE, OPTIONS, conf_dir

SCHEMA = 1
"""Version of the meaning of a configuration and of the files of a run. ``config_hash`` and ``first_task_hash`` include it.

Increase it, and add an entry to ``SCHEMA_CHANGES``, when a default or the meaning of an option changes or an option is
renamed. Then an old hash never identifies a new meaning. A new option needs no new schema.
"""

SCHEMA_CHANGES = {1: "the first schema"}
"""Changes of each schema."""

GROUPS = ("data", "scenario", "net", "optimizer", "scheduler", "strategy", "trainer")
"""Groups whose choice affects the results."""

HOW_DATA_IS_READ = ("data.memory_limit", "data.workers")
"""Options of the data that change how the data is read, but not its contents."""


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """Return all resolved options of ``cfg`` that affect the results."""
    options = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(options, dict)
    options |= {"data_dir": "", "output_dir": "", "logger": {}}
    options["data"] = {key: value for key, value in options["data"].items() if f"data.{key}" not in HOW_DATA_IS_READ}
    return {str(key): value for key, value in _resolved(options).items() if key not in ELSEWHERE}


def _resolved(options: dict[Any, Any]) -> dict[Any, Any]:
    """Return the options with the values of the options that they refer to."""

    def follow(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: follow(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [follow(inner) for inner in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        found = options[value.removeprefix("${").removesuffix("}")]
        if isinstance(found, dict | list):
            raise LookupError
        return follow(found)

    try:
        return {key: follow(value) for key, value in options.items()}
    except (LookupError, RecursionError):  # other references take OmegaConf a few ms; it explains wrong ones
        resolved = OmegaConf.to_container(OmegaConf.create(options), resolve=True)
        assert isinstance(resolved, dict)
        return resolved


def identity(cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that ``config_hash`` hashes.

    Args:
        cfg: A composed configuration.
        choices: Name of the yaml chosen in each of ``GROUPS``, as in Hydra's ``runtime.choices``.

    Returns:
        ``schema``, ``choices`` by group, and ``options``: dotted key -> value of each option that differs from the default
        in the chosen yaml files. The value ``~`` marks a declared option that was deleted. All options of a yaml from
        outside the package are included, because its defaults may change without a new schema.
    """
    names = {group: str(choices[group]) for group in GROUPS}
    values = _as_numbers(decisive(cfg))
    default = declared(tuple(names.items()))
    present = dict(_flat(values))
    expected = _expected(default, values)
    options = {
        key: _short_target(key, value)
        for key, value in present.items()
        if key not in expected or _text(expected[key]) != _text(value)
    }
    options |= dict.fromkeys(expected.keys() - present.keys(), "~")
    return {"schema": SCHEMA, "choices": names, "options": options}


def config_hash(cfg: DictConfig, choices: Mapping[str, Any]) -> str:
    """Return the hash (16 hex digits) that identifies a configuration, see ``identity``."""
    return _hash(identity(cfg, choices))


def content_hash(cfg: DictConfig) -> str:
    """Return a hash (16 hex digits) of every resolved option of ``cfg`` that affects the results."""
    return _hash(decisive(cfg))


def first_task_hash(cfg: DictConfig, matters: dict[str, Any], environment: Mapping[str, Any] | None = None) -> str:
    """Return a hash like ``content_hash``, with the schema, and with ``matters`` as the only options of the strategy.

    ``environment`` is included as well: the data and the versions of packages.
    """
    options = decisive(cfg) | {"strategy": matters} | dict.fromkeys(OPTIONS)
    return _hash({"schema": SCHEMA, "environment": dict(environment or {})} | options)


def derived_keys(cfg: DictConfig) -> dict[str, str]:
    """Return the options that refer to other options, with their references: ``{"strategy.lam": "${lam}"}``."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    return {key: value for key, value in _flat(raw, lists=True) if isinstance(value, str) and "${" in value}


def leaves(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values. Lists become text, so that all values are hashable."""
    for key, inner in _flat(value, prefix):
        yield key, json.dumps(inner) if isinstance(inner, dict | list) else inner


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values; "" for a missing value."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key, ""), b.get(key, "")) for key in keys if a.get(key, "") != b.get(key, "")}


@lru_cache(maxsize=256)
def declared(choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the unresolved configuration that the yaml files of the package declare for ``choices``.

    A group whose choice is from outside the package is excluded, so all its options count as changed.
    """
    from clbench.config.compose import compose, without_hydra  # imported late, because reading runs needs no Hydra

    folder = conf_dir()
    overrides = [
        f"{group}={choice}" if (folder / group / f"{choice}.yaml").is_file() else f"~{group}"
        for group, choice in choices
    ]
    declared = OmegaConf.to_container(without_hydra(compose(overrides)), resolve=False)
    assert isinstance(declared, dict)
    return {str(key): value for key, value in declared.items() if key not in ELSEWHERE}


def _expected(declared: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the declared values with dotted keys. References to other options are resolved with ``values``."""
    flat = {key: value for key, value in _flat(declared) if key not in HOW_DATA_IS_READ}
    values = {**values, "data_dir": ""}
    refers = {}
    for key, value in flat.items():
        name = value[2:-1] if isinstance(value, str) else ""
        if value == f"${{{name}}}" and name in values:  # most references; OmegaConf takes a few ms for them
            flat[key] = values[name]
        elif "${" in json.dumps(value):
            refers[key] = value
    if refers:
        resolved = OmegaConf.to_container(OmegaConf.create({**values, "_": refers}), resolve=True)
        assert isinstance(resolved, dict)
        flat |= resolved["_"]
    return {key: _as_numbers(value) for key, value in flat.items()}


def _flat(value: Mapping[Any, Any], prefix: str = "", lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values. Lists are values unless ``lists``; empty mappings are values."""
    for key, inner in value.items():
        if lists and isinstance(inner, list):
            inner = dict(enumerate(inner))
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{key}.", lists)
        else:
            yield f"{prefix}{key}", inner


def _text(value: Any) -> str:
    """Return a value as JSON, in which true and 1 differ."""
    return json.dumps(value, sort_keys=True)


def _short_target(key: str, value: Any) -> Any:
    """Return ``value`` with classes of clbench named without their module."""
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
    """Return ``value`` with integers converted to floats, because lam=1000 and lam=1e3 are the same configuration."""
    if isinstance(value, dict):
        return {key: _as_numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_as_numbers(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
