"""Compose the configuration of a command in this process, also while Hydra runs another."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from clbench.config.options import conf_dir


def composed(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Return the configuration that ``python -m clbench.train OVERRIDES`` has.

    Args:
        overrides: What a user types.
        with_hydra: Also return Hydra's own part, under ``hydra``.
    """
    instance = GlobalHydra.instance()
    running = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("train", list(overrides), return_hydra_config=with_hydra)
    finally:
        instance.hydra = running
