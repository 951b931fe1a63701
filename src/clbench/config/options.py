"""Config: what of the composed Hydra configuration needs a rule of our own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from clbench.errors import ConfigError

OPTIONS = ("lam", "gamma", "fisher", "samples", "fisher_batch", "memory")
"""Options of strategies that stand at the top level; a strategy has those that its yaml refers to."""

ELSEWHERE = (
    *("output_dir", "data_dir", "checkpoints", "objective", "threads", "logger", "log_every", "dry_run"),
    *("save_every", "share_first_task", "stop_after_task", "select_lam_on_first_tasks", "metrics"),
)
"""Keys that say where and how a run is done, not what comes out: not part of the config hash."""


OR_NULL = ("threads", "save_every", "eval_every", "patience", "stop_after_task", "select_lam_on_first_tasks")
"""Whole numbers that may be null."""

FLAGS = ("share_first_task", "dry_run", "compile", "optimizer.reset", "data.drop_last")
"""True or false; to Hydra ``no`` is a word, which would be taken for true."""

SAID_AS = {
    "trainer.max_epochs": "epochs",
    "trainer.max_steps": "steps",
    "data.batch_size": "batch_size",
    "data.scenario": "scenario",
}
"""Arguments of Lightning's Trainer and of our sequence that stand elsewhere in the configuration, under these names."""


def conf_dir() -> Path:
    """Where the yaml files lie: inside the installed package, or beside src/ in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def options_of(cfg: DictConfig) -> list[str]:
    """The top-level options that the strategy has: those its configuration refers to."""
    text = json.dumps(OmegaConf.to_container(cfg.strategy, resolve=False))
    used = set(re.findall(r"\$\{(\w+)\}", text))
    return [name for name in OPTIONS if name in used]


def foreign_options(cfg: DictConfig) -> dict[str, Any]:
    """Options that are set although the strategy does not have them, with their values."""
    has = options_of(cfg)
    return {name: cfg[name] for name in OPTIONS if name not in has and cfg[name] is not None}


def refuse_foreign_options(cfg: DictConfig, strategy: str) -> None:
    """Raise ConfigError if an option is set that the strategy does not have."""
    for name in foreign_options(cfg):
        raise ConfigError(why_foreign(cfg, strategy, name))


def why_foreign(cfg: DictConfig, strategy: str, name: str) -> str:
    """What is wrong with the option ``name``, set although the strategy does not have it, and what to write instead."""
    value, those = cfg[name], _strategies_with(name)
    if name not in cfg.strategy:
        return f"{name}={value}: strategy={strategy} has no {name}: leave it out or use one of {', '.join(those)}"
    if strategy in those:
        return f"strategy.{name}={cfg.strategy[name]}: write {name}={cfg.strategy[name]}"
    return f"{name}={value}: strategy={strategy} has one of its own, write strategy.{name}={value}"


def check_numbers(cfg: DictConfig) -> None:
    """Raise ConfigError if a number, true or false is not of its kind, or out of its range, or said where it is not read."""
    for key, name in SAID_AS.items():
        if (value := OmegaConf.select(cfg, key)) is not None:
            raise ConfigError(f"{key}={value}: write {name}={value}")
    if cfg.lr is not None and not _reads_lr(cfg):
        make = cfg.optimizer.make
        raise ConfigError(
            f"optimizer.make.lr={make.get('lr')} with lr={cfg.lr}: write lr=..., which an optimizer yaml reads as lr: ${{lr}}"
        )
    least = {"seed": 0, "batch_size": 1, "threads": 1, "save_every": 1}
    for name in (*least, "log_every", *OR_NULL):
        value = cfg[name]
        if value is None and name in OR_NULL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least.get(name, value):
            rule = f", at least {least[name]}" if name in least else ""
            raise ConfigError(f"{name}={value}: it is a whole number{rule}{', or null' if name in OR_NULL else ''}")
    for name in FLAGS:
        if not isinstance(value := OmegaConf.select(cfg, name, default=False), bool):
            raise ConfigError(f"{name}={value}: it is true or false")


def _reads_lr(cfg: DictConfig) -> bool:
    """Whether the rate of the optimiser is the top-level option."""
    make = OmegaConf.to_container(cfg.optimizer.make, resolve=False)
    return isinstance(make, dict) and make.get("lr") == "${lr}"


def budget(cfg: DictConfig, index: int, tasks: int) -> dict[str, int]:
    """How long task ``index`` is trained: ``max_epochs`` and ``max_steps`` of its Trainer.

    Raises:
        ConfigError: ``epochs`` or ``steps`` is not a whole number >= 1, or not one for each task.
    """
    name = "epochs" if cfg.steps is None else "steps"
    given = cfg[name]
    each = list(given) if isinstance(given, ListConfig) else [given] * tasks
    if len(each) != tasks:
        raise ConfigError(f"{name}={given} has {len(each)} entries for {tasks} tasks: give one number, or one per task")
    if not all(isinstance(n, int) and n >= 1 for n in each):
        raise ConfigError(f"{name}={given}: it is a whole number, at least 1, or a list of them, one per task")
    return (
        {"max_epochs": each[index], "max_steps": -1}
        if name == "epochs"
        else {"max_epochs": -1, "max_steps": each[index]}
    )


def drop_foreign_options(cfg: DictConfig) -> None:
    """In a sweep: set to null what the strategy does not have, so that such cells are one run."""
    with open_dict(cfg):
        for name in foreign_options(cfg):
            cfg[name] = None


def _strategies_with(option: str) -> list[str]:
    files = sorted((conf_dir() / "strategy").glob("*.yaml"))
    return [file.stem for file in files if f"${{{option}}}" in file.read_text()]
