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

from clbench.data import Batch, find_task, task_of
from clbench.errors import ConfigError, LearnerError, expected

Term = Callable[[Batch, Tensor], Tensor]
"""(batch, outputs (N, C)) -> a scalar that is added to the loss of the batch."""

LOSSES = ("cross_entropy", "binary_cross_entropy")


class Learner(L.LightningModule):
    """Learns by cross-entropy on the outputs that compete in the scenario.

    Strategies whose loss depends on data change what a step is made of, by these attributes; each strategy sets its own
    when a fit begins:

    Attributes:
        terms: what is added to the loss, by the name it is logged under (distillation, replayed outputs).
        extend: makes the batch that is trained on from the batch that came (rehearsal).
        update: does the whole step itself, optimisers included (manual optimisation), and returns what is logged.

    Args:
        net: ``net(x, task)`` -> outputs (N, C).
        optimizer: makes an optimiser of parameters, for example ``partial(torch.optim.Adam, lr=1e-3)``.
        reset_optimizer: a new optimiser for every task; else its state (Adam's moments) is carried from task to task.
        bn: ``train``: BatchNorm follows the statistics of every task; ``freeze_after_first``: in eval mode from the
            second task on, its statistics stay those of the first (its scale and shift still learn).
        scheduler: makes a learning-rate scheduler of the optimiser, a new one for every task; None = a constant rate.
        scheduler_interval: it steps every ``epoch`` or every ``step``.
        scheduler_length: its argument that is to be the number of steps of the task, for example ``T_max``.
        compile: compile the loss that is trained; importance and evaluation stay eager.
        loss: ``cross_entropy``, or ``binary_cross_entropy`` for a net with one output, the logit of label 1.

    Raises:
        ConfigError: unknown ``bn`` or ``loss``; a ``scheduler_length``, which counts steps, of a scheduler that counts epochs.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        reset_optimizer: bool = True,
        bn: str = "train",
        scheduler: Callable[..., LRScheduler] | None = None,
        scheduler_interval: str = "epoch",
        compile: bool = False,
        loss: str = "cross_entropy",
        scheduler_length: str | None = None,
    ) -> None:
        super().__init__()
        if bn not in ("train", "freeze_after_first"):
            raise ConfigError(f"bn={bn!r} is not one of train, freeze_after_first")
        if loss not in LOSSES:
            raise ConfigError(f"loss={loss!r} is not one of {', '.join(LOSSES)}")
        if scheduler_interval not in ("epoch", "step"):
            raise LearnerError(expected("scheduler_interval", scheduler_interval, "one of epoch, step"))
        if scheduler_length is not None and scheduler_interval != "step":
            raise LearnerError(
                f"scheduler_length={scheduler_length}: expected scheduler_interval=step, because {scheduler_length} is set to a "
                f"number of steps. Use that, or scheduler_length=None and scheduler.make.{scheduler_length} in epochs"
            )
        self.net = net
        self.bn = bn
        self.reset_optimizer = reset_optimizer
        self.optimizer_state: dict[str, Any] | None = None
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._scheduler_interval = scheduler_interval
        self._scheduler_length = scheduler_length
        self.loss_name = loss
        self.terms: dict[str, Term] = {}
        self.extend: Callable[[Batch], Batch] | None = None
        self.update: Callable[[Batch], dict[str, Tensor]] | None = None
        self.compiled = compile
        self._learned = torch.compile(self._outputs_and_loss) if compile else self._outputs_and_loss

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        outputs: Tensor = self.net(x, task)
        return outputs

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss of outputs (N, C) for targets (N,); C = 1 for the binary cross-entropy, else a ConfigError."""
        if self.loss_name == "binary_cross_entropy":
            if outputs.shape[1] != 1:
                raise ConfigError(
                    f"loss=binary_cross_entropy is of one output, the logit of label 1, but the net gives {outputs.shape[1]}: "
                    "give it one per task, or use loss=cross_entropy"
                )
            return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))
        return nn.functional.cross_entropy(outputs, y)

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs (N, C) over which a softmax gives the probabilities: the one logit z (N, 1) of label 1 becomes (0, z)."""
        return nn.functional.pad(outputs, (1, 0)) if self.loss_name == "binary_cross_entropy" else outputs

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``loss``, what is minimised, and the parts it is made of."""
        if self.update is not None:
            return self.update(batch)
        if self.extend is not None:
            batch = self.extend(batch)
        outputs, task_loss = self._learned(batch.x, batch.y, batch.task)
        parts = {name: term(batch, outputs) for name, term in self.terms.items()}
        total = sum(parts.values(), task_loss)
        return {"loss": total, "task_loss": task_loss.detach(), **{k: v.detach() for k, v in parts.items()}}

    def _outputs_and_loss(self, x: Tensor, y: Tensor, task: int | Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(x, task)
        return outputs, self.loss(outputs, y)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.parameters())
        if self.optimizer_state is not None:  # the moments are carried, the learning rate starts again
            carried = deepcopy(self.optimizer_state["state"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": carried})
        if self._make_scheduler is None:
            return optimizer
        length = self._scheduler_length
        told = {} if length is None else {length: steps_of(self.trainer)}
        scheduler = {"scheduler": self._make_scheduler(optimizer, **told), "interval": self._scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        task = find_task(self.trainer)
        later = task is not None and task.index > 0
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(not (later and self.bn == "freeze_after_first"))

    def on_train_end(self) -> None:
        if not self.reset_optimizer:
            self.optimizer_state = deepcopy(self.trainer.optimizers[0].state_dict())


def learner_of(module: L.LightningModule) -> Learner:
    """Return ``module``, which a strategy with a loss of its own has checked to be our Learner.

    Raises:
        ConfigError: it is another LightningModule.
    """
    if not isinstance(module, Learner):
        raise ConfigError(f"this needs clbench.learner.Learner, not {type(module).__name__}")
    return module


def steps_of(trainer: L.Trainer) -> int:
    """Optimiser steps of a fit of a task, which ends after ``max_epochs`` or ``max_steps``, whichever comes first (-1: neither).

    ``Trainer.estimated_stepping_batches`` would make the loader before a checkpoint brings it to its place.
    """
    epochs = trainer.max_epochs or 1
    if epochs < 0:
        return trainer.max_steps
    batches, limit = len(task_of(trainer).train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = -(-batches // trainer.accumulate_grad_batches) * epochs
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def learner_outputs(learner: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(outputs (N, C) that compete, targets (N,)) of a batch: what importance and evaluation look at."""
    return learner(batch.x, batch.task), batch.y
