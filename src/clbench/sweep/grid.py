"""List the runs of a grid. The name of a run folder follows from the configuration of the run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config.hashing import config_hash, content_hash
from clbench.config.options import drop_foreign_options, foreign_option_message, foreign_options, options_of
from clbench.errors import ConfigError
from clbench.runs.folder import is_finished, learned, read_metrics

Compose = Callable[[Sequence[str]], DictConfig]
"""``compose(overrides)`` returns the configuration, with Hydra's settings under the key ``hydra``."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Args:
        overrides: Overrides of the command.
        strategy: Name of the strategy.
        cfg: The configuration, without the key ``hydra``.
        hash: Hash of the configuration.
    """

    overrides: tuple[str, ...]
    strategy: str
    cfg: DictConfig
    hash: str

    @property
    def name(self) -> str:
        """Name of the run folder in the folder of the sweep."""
        return f"{self.strategy}-seed{self.cfg.seed}-{self.hash}"

    @property
    def kind(self) -> str:
        """Hash of all options except for lam and seed."""
        cfg = self.cfg.copy()
        OmegaConf.set_readonly(cfg, False)
        with open_dict(cfg):
            cfg.seed, cfg.lam = 0, None
        return content_hash(cfg)

    def settings(self, keys: Sequence[str]) -> list[str]:
        """Return the values of ``keys`` in the overrides, "-" for options that the strategy does not have."""
        typed = dict(override.split("=", 1) for override in self.overrides)
        return ["-" if typed[key] != "null" and self.cfg.get(key, "") is None else typed[key] for key in keys]

    def metrics(self, folder: Path) -> dict[str, Any] | None:
        """Return the contents of metrics.json, None if it does not exist.

        Raises:
            ConfigError: The file is damaged.
        """
        return read_metrics(folder / self.name)

    def learned(self, folder: Path) -> int:
        """Return the number of tasks learned so far."""
        found = self.metrics(folder)
        return 0 if found is None else learned(found)

    def is_done(self, folder: Path) -> bool:
        """Return whether the run has learned all tasks, or all until ``stop_after_task``."""
        found, first = self.metrics(folder), self.cfg.stop_after_task
        if found is None:
            return False
        return is_finished(found) or (first is not None and learned(found) >= first)


def plan_runs(overrides: Sequence[Sequence[str]], compose: Compose) -> list[PlannedRun]:
    """Return the runs with different configurations. All are composed first, so that errors are found before any run starts.

    Raises:
        ConfigError: An override sets an option that no strategy of the sweep has. If only some strategies do not have the
            option, it is dropped for these.
    """
    runs: dict[str, PlannedRun] = {}
    supported: set[str] = set()
    wrong: dict[str, str] = {}
    for run in overrides:
        cfg = compose(run)
        choices = cfg.hydra.runtime.choices
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        typed = {override.partition("=")[0].removeprefix("strategy.") for override in run}
        supported.update(options_of(cfg))
        for name in foreign_options(cfg).keys() & typed - wrong.keys():
            wrong[name] = foreign_option_message(cfg, choices.strategy, name)
        drop_foreign_options(cfg)
        key = config_hash(cfg, choices)
        runs.setdefault(key, PlannedRun(tuple(run), choices.strategy, cfg, key))
    for name in sorted(wrong.keys() - supported):
        raise ConfigError(wrong[name])
    return list(runs.values())


def varied_keys(runs: Sequence[PlannedRun]) -> list[str]:
    """Return the keys whose values differ between runs, in the order of the overrides."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for override in run.overrides:
            key, value = override.split("=", 1)
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]


def run_labels(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Return a label for each run by its name: strategy, varied options and seed."""
    keys = [key for key in varied_keys(runs) if key not in ("strategy", "seed")]
    labels = {}
    for run in runs:
        pairs = [f"{key}={value}" for key, value in zip(keys, run.settings(keys), strict=True) if value != "-"]
        labels[run.name] = " ".join([run.strategy, *pairs, f"seed={run.cfg.seed}"])
    return labels


def stable_folder(fixed: DictConfig, varied: Sequence[str]) -> Path:
    """Return the default folder of a sweep. It does not depend on the values of the varied keys.

    Args:
        fixed: The configuration without the varied keys.
        varied: The varied keys.
    """
    fixed = fixed.copy()
    OmegaConf.set_readonly(fixed, False)
    OmegaConf.set_struct(fixed, False)
    choices = fixed.pop("hydra").runtime.choices
    keys = sorted(varied)
    digest = hashlib.sha256(f"{config_hash(fixed, choices)} {keys}".encode()).hexdigest()[:8]
    label = re.sub(r"[^\w-]", "", "_".join(key.rpartition(".")[2] for key in keys))[:50] or "runs"
    return Path("outputs/sweeps") / f"{label}-{digest}"


def count_other_runs(folder: Path, runs: Sequence[PlannedRun]) -> int:
    """Return the number of runs in ``folder`` that are not among ``runs``."""
    names = {run.name for run in runs}
    return sum(file.parent.name not in names for file in folder.glob("*/metrics.json"))
