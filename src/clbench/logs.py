"""Logs: a callback that sends a run to Lightning loggers: losses on a step that never goes back, metrics on a task axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from clbench.errors import ConfigError
from clbench.evaluation import Evaluation
from clbench.metrics import accuracy_matrix
from clbench.strategies import QuadraticStrategy, Strategy


class Logs(L.Callback):
    """The loss, its parts and the penalty every ``every`` steps; accuracies after each task. Comes last in the list of callbacks.

    Args:
        strategy: whose penalty is logged.
        evaluation: whose accuracies are logged.
        every: steps between two entries; reading the loss waits for the device, so not every step.

    Attributes:
        step: optimiser steps of the run so far, over all tasks.
    """

    def __init__(self, strategy: Strategy, evaluation: Evaluation, every: int = 50) -> None:
        if every < 1:
            raise ConfigError(f"log_every={every}: at least 1 step between two entries")
        self.loggers: list[Logger] = []
        self.strategy = strategy
        self.evaluation = evaluation
        self.every = every
        self.step = 0
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.global_step == self._seen:
            return  # gradients are being accumulated
        self.step += trainer.global_step - self._seen
        self._seen = trainer.global_step
        if self.step % self.every or not self.loggers:
            return
        values = {f"train/{name}": part.item() for name, part in outputs.items()}
        values["task"] = trainer.datamodule.index
        if isinstance(self.strategy, QuadraticStrategy):
            with torch.no_grad():
                values["train/penalty"] = self.strategy.value(pl_module).item()
        self._log(values)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        task = trainer.datamodule.index
        row = accuracy_matrix(*self.evaluation.counts["test"])[task, : task + 1]
        values = {f"acc/task_{j}": accuracy.item() for j, accuracy in enumerate(row)}
        self._log({**values, "cl/average_accuracy": row.mean().item(), "task": task})

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]

    @contextmanager
    def to(self, loggers: Sequence[Logger]) -> Iterator[None]:
        """Log to ``loggers``, which are always closed at the end: a W&B run left open would take the next job's entries."""
        self.loggers = list(loggers)
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            for logger in self.loggers:
                logger.finalize(status)

    def final(self, readings: dict[str, Any]) -> None:
        """The final metrics, under their names in metrics.json."""
        self._log({key: value for key, value in readings.items() if isinstance(value, float)})

    def _log(self, values: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.log_metrics(values, step=self.step)
