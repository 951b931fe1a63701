"""Learner: the LightningModule of a run; a net, an optimiser, and what happens to BatchNorm on later tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from clbench.data import Batch, Task
from clbench.errors import ConfigError


class Learner(L.LightningModule):
    """Learns by cross-entropy on the outputs that compete in the scenario.

    Args:
        net: ``net(x, task)`` -> outputs (N, C).
        optimizer: makes an optimiser of parameters, for example ``partial(torch.optim.Adam, lr=1e-3)``.
        reset_optimizer: a new optimiser for every task; else its state (Adam's moments) is carried from task to task.
        bn: ``train``: BatchNorm follows the statistics of every task; ``freeze_after_first``: in eval mode from the
            second task on, its statistics stay those of the first (its scale and shift still learn).
        scheduler: makes a learning-rate scheduler of the optimiser, anew for every task; None = a constant rate.
        scheduler_interval: it steps every ``epoch`` or every ``step``.
        compile: compile the loss that is trained; importance and evaluation stay eager.

    Raises:
        ConfigError: unknown ``bn``.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        reset_optimizer: bool = True,
        bn: str = "train",
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        scheduler_interval: str = "epoch",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if bn not in ("train", "freeze_after_first"):
            raise ConfigError(f"bn={bn!r} is not one of train, freeze_after_first")
        self.net = net
        self.bn = bn
        self.reset_optimizer = reset_optimizer
        self.optimizer_state: dict[str, Any] | None = None
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._scheduler_interval = scheduler_interval
        self._loss = torch.compile(self._cross_entropy) if compile else self._cross_entropy

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        return self.net(x, task)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._loss(batch.x, batch.y, batch.task)

    def _cross_entropy(self, x: Tensor, y: Tensor, task: int | Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x, task), y)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.parameters())
        if self.optimizer_state is not None:  # the moments are carried, the learning rate starts anew
            carried = deepcopy(self.optimizer_state["state"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": carried})
        if self._make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._make_scheduler(optimizer), "interval": self._scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        task = self.trainer.datamodule
        later = isinstance(task, Task) and task.index > 0
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(not (later and self.bn == "freeze_after_first"))

    def on_train_end(self) -> None:
        if not self.reset_optimizer:
            self.optimizer_state = deepcopy(self.trainer.optimizers[0].state_dict())


def learner_outputs(learner: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(outputs (N, C) that compete, targets (N,)) of a batch: what importance and evaluation look at."""
    return learner(batch.x, batch.task), batch.y
