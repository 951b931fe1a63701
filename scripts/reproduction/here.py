"""The command ``python -m clbench.train OVERRIDES`` in this process: composed, hashed, trained; no process is started."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clbench.config.compose import compose, without_hydra
from clbench.config.hashing import config_hash
from clbench.config.options import refuse_foreign_options


@lru_cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration that the command would have, Hydra's part included; not to be changed."""
    return compose(overrides)


def hash_of(overrides: tuple[str, ...], seed: int) -> str:
    """The config hash of a run.

    Raises:
        ConfigError: an option that the strategy does not have.
    """
    whole = composed(overrides)
    cfg = without_hydra(whole)
    cfg.seed = seed
    refuse_foreign_options(cfg, whole.hydra.runtime.choices["strategy"])
    return config_hash(cfg, whole.hydra.runtime.choices)


def train_here(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Train with one thread and few files, what is printed goes to FOLDER/output.log; returns metrics.json.

    Runs of one parent folder share their first tasks. ``checkpoints=last`` among the arguments lets a long run resume inside a
    task; without it the run starts again.
    """
    from clbench.train import run

    folder.mkdir(parents=True, exist_ok=True)
    overrides = ("checkpoints=none", "logger=none", *arguments, "threads=1")
    with (folder / "output.log").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        return run(overrides, folder, quiet=True, sweep=folder.parent)
