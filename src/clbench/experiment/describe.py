"""Run metadata for metrics.json and the terminal."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clbench.config.arguments import connections
from clbench.config.hashing import decisive
from clbench.config.options import OPTIONS, options_of
from clbench.data import TaskSequence
from clbench.data.conversion import Conversion
from clbench.data.fingerprint import check_same_data
from clbench.data.source import current_fingerprint
from clbench.data.targets import LABEL, WHAT
from clbench.errors import ConfigError
from clbench.learner import Learner


def describe(cfg: DictConfig, choices: DictConfig, sequence: TaskSequence, learner: Learner) -> dict[str, Any]:
    """Return the description of a run for metrics.json."""
    options: Any = OmegaConf.to_container(cfg.strategy, resolve=True)
    packages = ("clbench", "torch", "torchvision", "lightning", "hydra-core", "numpy")
    return {
        "strategy": {"name": choices.strategy, **{key: value for key, value in options.items() if key != "_target_"}},
        "data": {
            "name": cfg.data.name,
            "scenario": cfg.scenario.name,
            "tasks": len(sequence),
            "eval_on": sequence.eval_on,
            "classes": [list(split.classes) for split in sequence.definitions],
            "examples": [task.examples for task in sequence],
            "fingerprint": sequence.fingerprint,
            "source_depends_on_seed": bool(connections(cfg, "data", ["seed"]).get("source")),
        },
        "net": {"name": choices.net, "parameters": sum(p.numel() for p in learner.parameters())},
        "seed": cfg.seed,
        "eval_every": cfg.eval_every,
        "machine": {"device": device(cfg.trainer.accelerator), "system": platform.platform(terse=True)},
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }


def fingerprint_in(metrics: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the fingerprints of the data in the contents of metrics.json, None for a run of an earlier version."""
    data = metrics.get("data")
    return data.get("fingerprint") if isinstance(data, dict) else None


def compare_with_current_data(metrics: Mapping[str, Any], cfg: DictConfig, path: Path) -> bool:
    """Return whether the data could be compared with those of a complete run, without downloading or building anything.

    Args:
        metrics: Contents of metrics.json.
        cfg: The configuration of the run.
        path: The run's folder.

    Raises:
        OtherRun: The data have changed since the run.
    """
    stored, current = fingerprint_in(metrics), None
    if stored is None:
        return True
    try:
        source = instantiate(cfg.data.source, _convert_="all")
        options: Any = OmegaConf.to_container(cfg.data, resolve=True)
        convert = Conversion.of(options.get("resize"), options.get("channels"))
        current = current_fingerprint(source, convert, cfg.loss)
    except (
        ConfigError,
        InstantiationException,
    ):  # the data or its code are not on this machine; the results are complete
        return False
    if current is not None:
        check_same_data(stored, current, path)
    return current is not None


def flat(cfg: DictConfig, choices: DictConfig, about: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a run for a dashboard: frequently filtered values at the top level, all options in ``yaml``."""
    config = decisive(cfg)
    return {
        **{group: choices[group] for group in ("strategy", "scenario", "net", "optimizer", "scheduler")},
        "data": cfg.data.name,
        "tasks": about["data"]["tasks"],
        "parameters": about["net"]["parameters"],
        "lr": config["lr"],
        **{key: config[key] for key in (*OPTIONS, "seed", "epochs", "steps", "batch_size")},
        "versions": about["versions"],
        "yaml": config,
    }


def plan(cfg: DictConfig, choices: DictConfig, sequence: TaskSequence, learner: Learner) -> dict[str, str]:
    """Return the parts of a run as text, to print before it starts."""
    options = {name: cfg[name] for name in options_of(cfg)}
    values = ", ".join(f"{name}={'all' if value is None else value}" for name, value in options.items())
    length = f"{cfg.epochs} epochs" if cfg.steps is None else f"{cfg.steps} steps"
    sizes = " or ".join(map(str, sorted(set(sequence.sizes))))
    what = "classes" if sequence.kind == LABEL else f"outputs ({WHAT[sequence.kind]})"
    optimizer = ", ".join(f"{key}={value}" for key, value in cfg.optimizer.make.items() if not str(key).startswith("_"))
    return {
        "strategy": choices.strategy + (f" ({values})" if values else ""),
        "data": f"{cfg.data.name}, {len(sequence)} tasks of {sizes} {what}, {cfg.scenario.name}-incremental",
        "net": f"{choices.net}, {sum(p.numel() for p in learner.parameters()):,} parameters",
        "training": f"{length} per task, batch {cfg.batch_size}, {choices.optimizer} {optimizer}",
        "seed": str(cfg.seed),
        "device": device(cfg.trainer.accelerator),
    }


def device(accelerator: str) -> str:
    """Return the name of the device that Lightning will choose."""
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "cpu" if accelerator in ("cpu", "auto") else accelerator
