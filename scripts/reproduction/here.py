"""Compose, hash and train the command ``python -m clbench.train OVERRIDES`` in this process."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clbench.config.compose import compose, without_hydra
from clbench.config.hashing import config_hash
from clbench.config.options import drop_foreign_options, refuse_foreign_options


@lru_cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    """Return the configuration of the command, including that of Hydra. Do not modify it."""
    return compose(overrides)


def hash_of(overrides: tuple[str, ...], seed: int) -> str:
    """Return the configuration hash of a run.

    Raises:
        ConfigError: The strategy does not have an option.
    """
    whole = composed(overrides)
    cfg = without_hydra(whole)
    cfg.seed = seed
    refuse_foreign_options(cfg, whole.hydra.runtime.choices["strategy"], overrides)
    drop_foreign_options(cfg)
    return config_hash(cfg, whole.hydra.runtime.choices)


def train_here(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Train with one thread and return metrics.json. Printed text goes to FOLDER/output.log.

    Runs in the same parent folder share their first tasks. With ``checkpoints=last`` among the arguments, a long run resumes
    within a task. Otherwise it starts again.
    """
    from clbench.train import run

    folder.mkdir(parents=True, exist_ok=True)
    overrides = ("checkpoints=none", "logger=none", *arguments, "threads=1")
    with (folder / "output.log").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        return run(overrides, folder, quiet=True, sweep=folder.parent)
