"""List the runs of a grid. The name of a run folder follows from the configuration of the run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import config_hash, derived_keys
from clbench.config.keys import check_keys
from clbench.config.options import OPTIONS, foreign_option_message, options_of
from clbench.errors import ConfigError
from clbench.runs.folder import is_finished, learned, read_metrics

Compose = Callable[[Sequence[str]], tuple[DictConfig, DictConfig]]
"""``compose(overrides)`` returns the configuration, without the key ``hydra``, and the choice of each group."""


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
        """Text of all options except for lam and seed."""
        options: Any = OmegaConf.to_container(self.cfg, resolve=False)
        return json.dumps({**options, "seed": None, "lam": None}, sort_keys=True)

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
    known: dict[str, list[str]] = {}  # options by the class and the references, from which they follow
    supported: set[str] = set()
    wrong: dict[str, str] = {}
    for run in overrides:
        cfg, choices = compose(run)
        OmegaConf.set_struct(cfg, False)
        check_keys(cfg, choices)
        typed = {override.partition("=")[0].removeprefix("strategy.") for override in run}
        references = json.dumps([OmegaConf.select(cfg, "strategy._target_"), derived_keys(cfg)])
        if references not in known:
            known[references] = options_of(cfg)
        supported.update(known[references])
        foreign = [name for name in OPTIONS if name not in known[references] and cfg[name] is not None]
        for name in {*foreign} & typed - wrong.keys():
            wrong[name] = foreign_option_message(cfg, choices.strategy, name)
        for name in foreign:
            cfg[name] = None  # so that runs that are otherwise equal are recognised as one run
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


def stable_folder(fixed: DictConfig, choices: DictConfig, varied: Sequence[str]) -> Path:
    """Return the default folder of a sweep. It does not depend on the values of the varied keys.

    Args:
        fixed: The configuration without the varied keys.
        choices: The choice of each group.
        varied: The varied keys.
    """
    keys = sorted(varied)
    digest = hashlib.sha256(f"{config_hash(fixed, choices)} {keys}".encode()).hexdigest()[:16]
    label = re.sub(r"[^\w-]", "", "_".join(key.rpartition(".")[2] for key in keys))[:50] or "runs"
    return Path("outputs/sweeps") / f"{label}-{digest}"


def count_other_runs(folder: Path, runs: Sequence[PlannedRun]) -> int:
    """Return the number of runs in ``folder`` that are not among ``runs``."""
    names = {run.name for run in runs}
    return sum(file.parent.name not in names for file in folder.glob("*/metrics.json"))
