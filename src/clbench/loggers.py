"""Loggers of a run: one function each, so that only the package that is used is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from clbench.errors import ConfigError

MakeLogger = Callable[["Place"], Logger]


@dataclass(frozen=True)
class Place:
    """Where and for what a logger is made.

    Args:
        folder: of the run.
        shared: of the sweep, or of the run if it is alone: all runs of a sweep share one W&B directory.
        start: first task that is logged; > 0 when a run goes on.
        about: the configuration, flat enough to filter by.
    """

    folder: Path
    shared: Path
    start: int
    about: dict[str, Any]


def csv(place: Place) -> Logger:
    """``logs/from_task_<t>/metrics.csv`` in the run folder; a run that goes on begins a file of its own."""
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(place.folder, name="logs", version=f"from_task_{place.start}")


def tensorboard(place: Place) -> Logger:
    """Event files under ``tensorboard/`` in the run folder (needs the package tensorboard)."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(place.folder, name="tensorboard", version=f"from_task_{place.start}")
    except ModuleNotFoundError as error:
        raise ConfigError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error


def wandb(place: Place, project: str = "clbench") -> Logger:
    """Weights & Biases: online if there is a key, else offline; a run that goes on has the same id.

    Args:
        place: where it is made; all runs of a sweep write into one ``wandb/`` directory and are one group.
        project: name of the W&B project.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb as package
    from lightning.pytorch.loggers import WandbLogger

    class Finished(WandbLogger):
        """Ends its run, so that the next job of the process does not log into it."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            package.finish(exit_code=0 if status == "success" else 1)

    mode = os.environ.get("WANDB_MODE") or ("online" if package.login(prompt=False) else "offline")
    place.shared.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(f"{place.folder.resolve()}{place.about['config_hash']}".encode()).hexdigest()[:12]
    strategy, data = place.about["strategy"]["name"], place.about["data"]["name"]
    options = " ".join(f"{k}={v}" for k, v in place.about["strategy"].items() if k in ("lam", "fisher"))
    logger = Finished(
        project=project,
        name=f"{strategy} {options} {data} seed={place.about['seed']}".replace("  ", " "),
        id=identity,
        resume="allow" if mode == "online" else None,
        save_dir=place.shared,
        group=place.shared.name if place.shared != place.folder else None,
        tags=[strategy, data],
        config=place.about,
        mode=mode,
        settings=package.Settings(silent=True),
    )
    logger.experiment.define_metric("task")
    logger.experiment.define_metric("acc/*", step_metric="task")
    logger.experiment.define_metric("cl/*", step_metric="task")
    return logger
