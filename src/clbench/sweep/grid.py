"""The runs of a sweep: each has a configuration and a folder that stays the same whenever the sweep is started."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config.hashing import config_hash, content_hash
from clbench.config.options import drop_foreign_options, foreign_options, options_of, why_foreign
from clbench.errors import ConfigError
from clbench.runs.folder import FINISHED, learned

Compose = Callable[[Sequence[str]], DictConfig]
"""Overrides -> the configuration, Hydra's part included."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Args:
        overrides: as they would be typed.
        strategy: its name.
        cfg: the configuration, without Hydra's part.
        hash: of the configuration.
    """

    overrides: tuple[str, ...]
    strategy: str
    cfg: DictConfig
    hash: str

    @property
    def name(self) -> str:
        """Of its folder in that of the sweep: it follows from the configuration."""
        return f"{self.strategy}-seed{self.cfg.seed}-{self.hash}"

    @property
    def kind(self) -> str:
        """A hash of all but lam and seed."""
        cfg = self.cfg.copy()
        OmegaConf.set_readonly(cfg, False)
        with open_dict(cfg):
            cfg.seed, cfg.lam = 0, None
        return content_hash(cfg)

    def settings(self, keys: Sequence[str]) -> list[str]:
        """The values of ``keys`` as they were typed, "-" where the strategy does not have that option."""
        typed = dict(override.split("=", 1) for override in self.overrides)
        return ["-" if typed[key] != "null" and self.cfg.get(key, "") is None else typed[key] for key in keys]

    def metrics(self, folder: Path) -> dict[str, Any] | None:
        """What its metrics.json holds so far; None if there is none."""
        try:
            found: dict[str, Any] = json.loads((folder / self.name / "metrics.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def learned(self, folder: Path) -> int:
        """How many tasks it has learned so far."""
        found = self.metrics(folder)
        return 0 if found is None else learned(found)

    def done(self, folder: Path) -> bool:
        """Whether it has learned what it was asked to: all tasks, or the first of them."""
        found, first = self.metrics(folder), self.cfg.stop_after_task
        if found is None:
            return False
        return found["status"] == FINISHED or (first is not None and learned(found) >= first)


def plan_runs(overrides: Sequence[Sequence[str]], compose: Compose) -> list[PlannedRun]:
    """The runs whose configurations differ, each composed once, so that a wrong override is found before any run.

    Raises:
        ConfigError: an option was typed that no strategy of the sweep has; one that only some lack is dropped for those.
    """
    runs: dict[str, PlannedRun] = {}
    had: set[str] = set()
    wrong: dict[str, str] = {}
    for run in overrides:
        cfg = compose(run)
        choices = cfg.hydra.runtime.choices
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        typed = {override.partition("=")[0].removeprefix("strategy.") for override in run}
        had.update(options_of(cfg))
        for name in foreign_options(cfg).keys() & typed - wrong.keys():
            wrong[name] = why_foreign(cfg, choices.strategy, name)
        drop_foreign_options(cfg)
        key = config_hash(cfg, choices)
        runs.setdefault(key, PlannedRun(tuple(run), choices.strategy, cfg, key))
    for name in sorted(wrong.keys() - had):
        raise ConfigError(wrong[name])
    return list(runs.values())


def varied_keys(runs: Sequence[PlannedRun]) -> list[str]:
    """The keys whose values differ between runs, in the order given."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for override in run.overrides:
            key, value = override.split("=", 1)
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]


def run_labels(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """How to speak of each run, by its name: strategy, what is varied, seed."""
    keys = [key for key in varied_keys(runs) if key not in ("strategy", "seed")]
    said = {}
    for run in runs:
        pairs = [f"{key}={value}" for key, value in zip(keys, run.settings(keys), strict=True) if value != "-"]
        said[run.name] = " ".join([run.strategy, *pairs, f"seed={run.cfg.seed}"])
    return said


def stable_folder(fixed: DictConfig, varied: Sequence[str]) -> Path:
    """Return the folder of a sweep for which none was given: the same for the same command, also with more values of a key.

    Args:
        fixed: the configuration without what is varied.
        varied: the keys that are.
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
    """Runs in ``folder`` that are not of these runs."""
    mine = {run.name for run in runs}
    return sum(file.parent.name not in mine for file in folder.glob("*/metrics.json"))
