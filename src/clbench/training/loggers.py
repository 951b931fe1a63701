"""Loggers of a run: one function each, so that only the package that is used is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor

from clbench.config.options import OPTIONS
from clbench.errors import ConfigError
from clbench.params import Params
from clbench.runs.names import format_value
from clbench.training.logging import Dashboard, numbers


@dataclass(frozen=True)
class LoggerContext:
    """Where and for what a logger is made.

    Args:
        folder: of the run.
        shared: of the sweep, or of the run if it is alone: all runs of a sweep share one W&B directory.
        start: index of the first task that is logged; > 0 when a run resumes.
        about: the configuration, flat enough to filter by: ``strategy``, ``data``, ``scenario``, ``lam``, ``seed``, ...
        say: is given a line for the user.
    """

    folder: Path
    shared: Path
    start: int
    about: dict[str, Any]
    say: Callable[[str], None]


def csv(place: LoggerContext) -> Logger:
    """``logs/from_task_<t>/metrics.csv`` in the run folder; a run that resumes starts a file of its own.

    The t of a file name counts from 0, as in ``task_<t>.ckpt``. In the same task that is ``from_task_<t>_2`` and so on: a
    CSVLogger removes the file of the one before it.
    """
    from lightning.pytorch.loggers import CSVLogger

    first = f"from_task_{place.start}"
    names = (first if k == 1 else f"{first}_{k}" for k in count(1))
    return CSVLogger(
        place.folder, name="logs", version=next(n for n in names if not (place.folder / "logs" / n).exists())
    )


def tensorboard(place: LoggerContext) -> Logger:
    """Event files under ``tensorboard/`` in the run folder (needs the package tensorboard)."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(place.folder, name="tensorboard", version=f"from_task_{place.start}")
    except ModuleNotFoundError as error:
        raise ConfigError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error


AXES = {
    "train/*": "step",
    **dict.fromkeys(("acc/*", "cl/*", "importance/*", "log10_importance/*", "seconds/*", "memory/*"), "task"),
    "accuracy_matrix": "task",
}
"""What the x axis of a W&B chart is."""


def wandb(place: LoggerContext, project: str = "clbench") -> Logger:
    """Weights & Biases: online if logged in, else offline; a run that resumes has the same id.

    Args:
        place: where it is made; all runs of a sweep write into one ``wandb/`` directory and are one group.
        project: name of the W&B project.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import numpy as np
    import wandb as package
    from lightning.pytorch.loggers import WandbLogger

    class Board(WandbLogger, Dashboard):
        """Has axes of its own, shows R and importance, and ends its run, so that the next job does not log into it."""

        def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
            self.experiment.log({**metrics, "step": step})

        def log_task(self, values: dict[str, float], r: Tensor, importance: Params, step: int) -> None:
            from clbench.runs.plots import accuracy_matrix

            picture = package.Image(accuracy_matrix(r.numpy(), name), caption=f"after task {values['task']}")
            logs = {layer: f[f.isfinite() & (f > 0)].log10().cpu().numpy() for layer, f in importance.items()}
            histograms = {
                f"log10_importance/{layer}": package.Histogram(np_histogram=np.histogram(x, bins=64))
                for layer, x in logs.items()
                if len(x)
            }
            self.log_metrics({**values, "accuracy_matrix": picture, **histograms}, step)

        def log_results(self, results: Mapping[str, Any]) -> None:
            r = results["accuracy_matrix"]
            rows = [[i, j, a] for i, row in enumerate(r, start=1) for j, a in enumerate(row, start=1)]
            table = package.Table(columns=["after_task", "task", "accuracy"], data=rows)
            said = [warning["kind"] for warning in results["warnings"]]
            self.experiment.summary.update({**numbers(results), "warnings": said, "accuracy_table": table})

        def finalize(self, status: str) -> None:
            super().finalize(status)
            package.finish(exit_code=0 if status == "success" else 1)

    mode: Any = os.environ.get("WANDB_MODE") or package.setup().settings.mode
    if mode == "online" and not package.login(prompt=False, verify=False):
        mode = "offline"
    place.shared.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(f"{place.folder.resolve()}{place.about['config_hash']}".encode()).hexdigest()[:12]
    name = readable(place.about)
    run = package.init(
        project=project,
        name=name,
        id=os.environ.get("WANDB_RUN_ID", identity),  # what `wandb agent` has chosen
        resume="allow",
        dir=place.shared,
        group=group_of(place),
        tags=[place.about[key] for key in ("strategy", "data", "scenario")],
        config=place.about,
        mode=mode,
        settings=package.Settings(silent=True),
    )
    for metrics, axis in AXES.items():
        run.define_metric(metrics, step_metric=axis)
    where = {"online": run.url, "disabled": "nothing is logged"}
    here = f"in {place.shared / 'wandb'}: wandb leet shows it, wandb sync uploads it"
    place.say(f"W&B: {mode}, {where.get(mode, here)}")
    return Board(experiment=run)


def readable(about: Mapping[str, Any]) -> str:
    """The name of a run: "ewc lam=1000 fisher=exact permuted_digits task seed=0"."""
    options = [f"{key}={format_value(about[key])}" for key in OPTIONS if about[key] is not None]
    return " ".join([about["strategy"], *options, about["data"], about["scenario"], f"seed={about['seed']}"])


def group_of(place: LoggerContext) -> str | None:
    """The sweep's folder, as seen from where the command was given; None for a run alone."""
    if place.shared == place.folder:
        return None
    here = Path.cwd()
    return str(place.shared.relative_to(here)) if place.shared.is_relative_to(here) else place.shared.name
