"""What identifies a configuration: the values that decide the results, and a hash of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config.options import ELSEWHERE, OPTIONS


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """Everything in ``cfg`` that decides the results, resolved."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        cfg.data_dir = ""
        cfg.output_dir = ""
        cfg.logger = {}
        for name in ("memory_limit", "workers"):  # how the data is read, not what is read
            cfg.data.pop(name, None)
        resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items() if key not in ELSEWHERE}


def leaves(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; lists as text, so that values can be compared and counted."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(inner) if isinstance(inner, dict | list) else inner


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both; "" where there is none."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key, ""), b.get(key, "")) for key in keys if a.get(key, "") != b.get(key, "")}


def config_hash(cfg: DictConfig) -> str:
    """Eight hex digits over everything in ``cfg`` that decides the results."""
    return _hash(decisive(cfg))


def _hash(values: dict[str, Any]) -> str:
    numbers = _numbers_as_floats(values)
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:8]


def first_task_hash(cfg: DictConfig, matters: dict[str, Any]) -> str:
    """The same, but of the strategy only over ``matters``, see ``Strategy.first_task_options``."""
    return _hash(decisive(cfg) | {"strategy": matters} | dict.fromkeys(OPTIONS))


def _numbers_as_floats(value: Any) -> Any:
    """lam=1000 and lam=1e3 are one configuration."""
    if isinstance(value, dict):
        return {key: _numbers_as_floats(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers_as_floats(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
