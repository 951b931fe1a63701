"""Stop a task early on its validation loss, and keep its best or its last weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from clbench.data import Task, TaskSequence, task_of
from clbench.errors import ConfigError, expected
from clbench.learner import learner_of
from clbench.params import snapshot
from clbench.training.measures import LOSS, TERMS, measure_of, measured


class EarlyStopping(L.Callback):
    """Callback that evaluates the mean nll on validation data after each epoch.

    It uses the validation data of the current task, or of all tasks so far if the task mixes their data. The callback must
    precede the strategy, so that the strategy consolidates the weights that it selects.

    Args:
        patience: Epochs without a lower nll until the task is stopped early, None to train all epochs.
        consolidate: Weights that are kept: those of the ``last`` epoch, or of the ``best`` epoch (lowest nll).

    Raises:
        ConfigError: ``consolidate`` is unknown, or ``patience`` is below 1.
    """

    def __init__(self, patience: int | None = None, consolidate: str = "last") -> None:
        if consolidate not in ("last", "best"):
            raise ConfigError(expected("consolidate", consolidate, "last or best"))
        if patience is not None and patience < 1:
            raise ConfigError(expected("patience", patience, "an integer >= 1 or null"))
        self.patience = patience
        self.consolidate = consolidate
        self._reset()

    @property
    def is_needed(self) -> bool:
        """Whether the callback changes the training."""
        return self.patience is not None or self.consolidate == "best"

    def check(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if the callback needs validation data that ``sequence`` does not have."""
        if self.is_needed and not sequence.has_validation:
            raise ConfigError(
                "patience and consolidate=best need validation data of every task. Try a larger data.validation."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check(task_of(trainer).sequence)
        if trainer.ckpt_path is None:
            self._reset()

    def _reset(self) -> None:
        self.best = float("inf")
        self.epochs_since = 0
        self.state: dict[str, torch.Tensor] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task: Task = task_of(trainer)
        loaders = task.val_dataloader()
        used = loaders[: task.index + 1] if task.mixed else [loaders[task.index]]
        found = measured(learner, used, measure_of(task.sequence), max(task.sequence.sizes))
        sums = torch.stack([measure.sums[[LOSS, TERMS]] for measure in found]).sum(0)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(learner.device), reduce_op="sum").cpu()
        loss = (sums[LOSS] / sums[TERMS]).item()
        if loss < self.best:
            self.best, self.epochs_since = loss, 0
            if self.consolidate == "best":
                self.state = {name: value.clone() for name, value in learner.state_dict().items()}
        else:
            self.epochs_since += 1
            if self.patience is not None and self.epochs_since >= self.patience:
                trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        if self.state:
            learner.load_state_dict(self.state)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epochs_since": self.epochs_since, "state": snapshot(self.state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epochs_since = state_dict["best"], state_dict["epochs_since"]
        self.state = state_dict["state"]
