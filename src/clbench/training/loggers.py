"""Create the loggers of a run. Each logger has a function, so that only the packages in use are imported."""

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
from clbench.metrics.quality import QUALITIES, Quality, quality_of
from clbench.params import Params
from clbench.runs.names import format_value
from clbench.training.logging import Dashboard, numbers, prefix_of


@dataclass(frozen=True)
class LoggerContext:
    """The run for which a logger is created.

    Args:
        folder: The run's folder.
        shared: The folder of the W&B directory: the sweep's folder, or the run's folder for a single run.
        start: Index of the first task that is logged; > 0 when a run resumes.
        about: The configuration for filters: ``strategy``, ``data``, ``scenario``, ``lam``, ``seed``, ...
        report: Function that prints a line for the user.
    """

    folder: Path
    shared: Path
    start: int
    about: dict[str, Any]
    report: Callable[[str], None]


def csv(context: LoggerContext) -> Logger:
    """Return a logger that writes ``logs/from_task_<t>/metrics.csv`` in the run folder.

    Task numbers t start at 0, as in ``task_<t>.ckpt``. A resumed run writes a new file, ``from_task_<t>_2`` and so on if it
    resumes in the same task, because a CSVLogger removes an existing file.
    """
    from lightning.pytorch.loggers import CSVLogger

    first = f"from_task_{context.start}"
    names = (first if k == 1 else f"{first}_{k}" for k in count(1))
    return CSVLogger(
        context.folder, name="logs", version=next(n for n in names if not (context.folder / "logs" / n).exists())
    )


def tensorboard(context: LoggerContext) -> Logger:
    """Return a logger that writes event files to ``tensorboard/`` in the run folder (needs the package tensorboard)."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(context.folder, name="tensorboard", version=f"from_task_{context.start}")
    except ModuleNotFoundError as error:
        raise ConfigError("logger=tensorboard needs the package tensorboard. Try pip install tensorboard.") from error


AXES = {
    "train/*": "step",
    **dict.fromkeys((f"{prefix_of(quality)}/*" for quality in QUALITIES.values()), "task"),
    **dict.fromkeys(("cl/*", "importance/*", "log10_importance/*", "seconds/*", "memory/*"), "task"),
    **dict.fromkeys((quality.key("accuracy_matrix") for quality in QUALITIES.values()), "task"),
}
"""Metrics in W&B -> the metric on the x axis of their charts."""


def wandb(context: LoggerContext, project: str = "clbench") -> Logger:
    """Return a logger for Weights & Biases, online if the user is logged in, else offline.

    A resumed run keeps its id. All runs of a sweep share one ``wandb/`` directory and form one group.

    Args:
        context: The run.
        project: Name of the W&B project.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import numpy as np
    import wandb as package
    from lightning.pytorch.loggers import WandbLogger

    class Board(WandbLogger, Dashboard):
        """W&B logger that shows R and importance, and that ends its W&B run, so that the next run does not log to it."""

        def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
            self.experiment.log({**metrics, "step": step})

        def log_task(
            self, values: dict[str, float], r: Tensor, quality: Quality, importance: Params, step: int
        ) -> None:
            from clbench.runs.plots import accuracy_matrix

            picture = package.Image(accuracy_matrix(r.numpy(), name, quality), caption=f"after task {values['task']}")
            logs = {layer: f[f.isfinite() & (f > 0)].log10().cpu().numpy() for layer, f in importance.items()}
            histograms = {
                f"log10_importance/{layer}": package.Histogram(np_histogram=np.histogram(x, bins=64))
                for layer, x in logs.items()
                if len(x)
            }
            self.log_metrics({**values, quality.key("accuracy_matrix"): picture, **histograms}, step)

        def log_results(self, results: Mapping[str, Any]) -> None:
            key = quality_of(results).key
            r = results[key("accuracy_matrix")]
            rows = [[i, j, a] for i, row in enumerate(r, start=1) for j, a in enumerate(row, start=1)]
            table = package.Table(columns=["after_task", "task", key("accuracy")], data=rows)
            kinds = [warning["kind"] for warning in results["warnings"]]
            self.experiment.summary.update({**numbers(results), "warnings": kinds, key("accuracy_table"): table})

        def finalize(self, status: str) -> None:
            super().finalize(status)
            package.finish(exit_code=0 if status == "success" else 1)

    mode: Any = os.environ.get("WANDB_MODE") or package.setup().settings.mode
    if mode == "online" and not package.login(prompt=False, verify=False):
        mode = "offline"
    context.shared.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(f"{context.folder.resolve()}{context.about['config_hash']}".encode()).hexdigest()[:16]
    name = run_name(context.about)
    run = package.init(
        project=project,
        name=name,
        id=os.environ.get("WANDB_RUN_ID", identity),  # set by `wandb agent`
        resume="allow",
        dir=context.shared,
        group=group_of(context),
        tags=[context.about[key] for key in ("strategy", "data", "scenario")],
        config=context.about,
        mode=mode,
        settings=package.Settings(silent=True),
    )
    for metrics, axis in AXES.items():
        run.define_metric(metrics, step_metric=axis)
    texts = {"online": run.url, "disabled": "nothing is logged"}
    offline = f"stored in {context.shared / 'wandb'} (view it with wandb leet, upload it with wandb sync)"
    context.report(f"W&B: {mode}, {texts.get(mode, offline)}")
    return Board(experiment=run)


def run_name(about: Mapping[str, Any]) -> str:
    """Return the name of a run in W&B: "ewc lam=1000 fisher=exact permuted_digits task seed=0"."""
    options = [f"{key}={format_value(about[key])}" for key in OPTIONS if about[key] is not None]
    return " ".join([about["strategy"], *options, about["data"], about["scenario"], f"seed={about['seed']}"])


def group_of(context: LoggerContext) -> str | None:
    """Return the group of a run in W&B: its sweep's folder relative to the current folder; None for a single run."""
    if context.shared == context.folder:
        return None
    current = Path.cwd()
    return str(context.shared.relative_to(current)) if context.shared.is_relative_to(current) else context.shared.name
