"""The command ``python -m clbench.train OVERRIDES`` in this process: composed, hashed, trained; no process is started."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config.hashing import config_hash
from clbench.config.options import conf_dir, refuse_foreign_options


@lru_cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration that the command would have, Hydra's part included; not to be changed."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def hash_of(overrides: tuple[str, ...], seed: int) -> str:
    """The config hash of a run.

    Raises:
        ConfigError: an option that the strategy does not have.
    """
    whole = composed(overrides)
    cfg = _task_part(whole)
    cfg.seed = seed
    refuse_foreign_options(cfg, whole.hydra.runtime.choices["strategy"])
    return config_hash(cfg, whole.hydra.runtime.choices)


def train_here(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Train with one thread and few files, what is printed goes to FOLDER/output.log; returns metrics.json.

    ``checkpoints=last`` among the arguments lets a long run go on inside; without, it starts anew.
    """
    from clbench.train import train

    whole = composed(("checkpoints=none", "logger=none", *arguments, "threads=1", f"output_dir={folder}")).copy()
    OmegaConf.set_readonly(whole, False)
    with open_dict(whole):
        whole.hydra.runtime.output_dir = str(folder)
        whole.hydra.mode = "MULTIRUN"  # quiet
        whole.hydra.sweep.dir = str(folder.parent)  # where runs find what they have in common
    HydraConfig.instance().set_config(whole)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        train(_task_part(whole))
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def _task_part(whole: DictConfig) -> DictConfig:
    cfg = whole.copy()
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg
