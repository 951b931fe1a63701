"""Learner: the LightningModule of a run, with a net, an optimiser and the treatment of BatchNorm on later tasks."""

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

from clbench.data import Batch, TaskSequence, find_task, task_of
from clbench.data.targets import LOSSES, WHAT, kind_of
from clbench.errors import ConfigError, LearnerError, expected

Term = Callable[[Batch, Tensor], Tensor]
"""Function of (batch, outputs (N, C)) that returns a scalar, added to the loss of the batch."""


class Learner(L.LightningModule):
    """LightningModule that minimises a loss of the outputs that compete in the scenario.

    A strategy whose loss depends on data changes the training step through four attributes, which it sets when a fit starts.

    Attributes:
        terms: Terms added to the loss, by the name under which they are logged (distillation, replayed outputs).
        extend: Returns the batch to train on, given the batch of the loader (rehearsal).
        weigh: Replaces ``loss`` in the training step: a function of (outputs, y) (weights of new and old examples).
        update: Performs the whole step, including that of the optimisers (manual optimisation), and returns the values to log.
        fresh_net: Returns a new net of the same kind, with initial weights drawn from the global random generators. None if the
            learner was not built from a configuration.

    Args:
        net: Module called as ``net(x, task)`` that returns outputs (N, C), (N, T, C) for tokens or (N, C, H, W) for pixels.
        optimizer: Returns an optimiser of the given parameters, for example ``partial(torch.optim.Adam, lr=1e-3)``.
        reset_optimizer: Whether every task starts with a new optimiser. Otherwise its state (the moments of Adam) is kept. With
            ``moments`` only its number of steps is kept. Adam then starts with moments of 0 and without their bias correction, so
            its first steps are larger, as in the code of Zenke et al. 2017 for Keras.
        bn: With ``train``, BatchNorm follows the statistics of every task. With ``freeze_after_first`` it is in evaluation mode
            from the second task on, so its statistics are those of the first task. Its scale and shift are still trained.
        scheduler: Returns a learning-rate scheduler of the optimiser, a new one for every task. None is a constant rate.
        scheduler_interval: When the scheduler steps, every ``epoch`` or every ``step``.
        scheduler_length: Argument of the scheduler that is set to the number of steps of the task, for example ``T_max``.
        compile: Whether to compile the training loss. Importance and evaluation are not compiled.
        loss: ``cross_entropy`` of one label, or of a label per token or pixel; ``binary_cross_entropy`` of several labels, or of
            one label of two classes with one output, the logit of label 1; or ``mse`` of numbers.

    Raises:
        ConfigError: ``reset_optimizer``, ``bn``, ``loss`` or ``scheduler_interval`` is unknown, or ``scheduler_length`` is set
            although the scheduler steps every epoch.

    Example:
        >>> from functools import partial
        >>> from clbench.nets import MultiHead, Net, mlp
        >>> net = Net(mlp((3,), hidden=(4,)), MultiHead(4, sizes=[2, 2]))
        >>> learner = Learner(net, partial(torch.optim.SGD, lr=0.1))
        >>> learner(torch.zeros(5, 3), task=1).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        reset_optimizer: bool | str = True,
        bn: str = "train",
        scheduler: Callable[..., LRScheduler] | None = None,
        scheduler_interval: str = "epoch",
        compile: bool = False,
        loss: str = "cross_entropy",
        scheduler_length: str | None = None,
    ) -> None:
        super().__init__()
        if reset_optimizer not in (True, False, "moments"):
            raise LearnerError(expected("reset_optimizer", reset_optimizer, "True, False or moments"))
        if bn not in ("train", "freeze_after_first"):
            raise ConfigError(expected("bn", bn, "one of train, freeze_after_first"))
        if loss not in LOSSES:
            raise ConfigError(expected("loss", loss, f"one of {', '.join(LOSSES)}"))
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
        self.weigh: Callable[[Tensor, Tensor], Tensor] | None = None
        self.update: Callable[[Batch], dict[str, Tensor]] | None = None
        self.fresh_net: Callable[[], nn.Module] | None = None
        self._older = 0  # number of outputs of earlier tasks, with which new classes do not compete
        self.compiled = compile
        self._learned = torch.compile(self._outputs_and_loss) if compile else self._outputs_and_loss

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        outputs: Tensor = self.net(x, task)
        return outputs

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss, a mean over examples and over their positions, labels or numbers.

        Args:
            outputs: (N, C), (N, T, C) for tokens, or (N, C, H, W) for pixels.
            y: One label (N,), several labels or numbers (N, C), or a label per token (N, T) or pixel (N, H, W).

        Raises:
            ConfigError: The loss is binary cross-entropy with one label, and C is not 1.
        """
        if self.loss_name == "mse":
            return nn.functional.mse_loss(outputs, y.to(outputs.dtype))
        if self.loss_name == "binary_cross_entropy":
            if y.dim() == 2:
                return nn.functional.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype))
            if outputs.shape[1] != 1:
                raise ConfigError(
                    f"loss=binary_cross_entropy needs one output (the logit of class 1), but the net has {outputs.shape[1]}. "
                    "Use a net with one output per task, or loss=cross_entropy"
                )
            return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))
        return nn.functional.cross_entropy(outputs.movedim(-1, 1) if outputs.dim() == 3 else outputs, y)

    def logits(self, outputs: Tensor) -> Tensor:
        """Return outputs (N, C) whose softmax is the probabilities. A single logit z (N, 1) of label 1 becomes (0, z)."""
        return nn.functional.pad(outputs, (1, 0)) if self.loss_name == "binary_cross_entropy" else outputs

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``loss``, which is minimised, and its parts."""
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
        return outputs, (self.weigh or self.loss)(self.competing(outputs, y), y)

    def competing(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return outputs (N, C) with -inf for classes that do not compete with that of the example, see ``train_classes``.

        With ``train_classes=new``, classes of earlier tasks do not compete with those of the task. Replayed examples of earlier
        tasks compete with all classes seen so far, similar to ER-ACE (``clbench.ERACE``).
        """
        if not self._older:
            return outputs
        older = torch.arange(outputs.shape[1], device=outputs.device) < self._older
        return outputs.masked_fill(older & (y >= self._older)[:, None], float("-inf"))

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.parameters())
        if self.optimizer_state is not None:  # keep the moments, restart the learning rate
            carried = deepcopy(self.optimizer_state["state"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": carried})
        if self._make_scheduler is None:
            return optimizer
        length = self._scheduler_length
        arguments = {} if length is None else {length: steps_of(self.trainer)}
        scheduler = {"scheduler": self._make_scheduler(optimizer, **arguments), "interval": self._scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        task, self._older = find_task(self.trainer), 0
        if task is not None:
            self._check_loss(task.sequence)
            if task.sequence.scenario.train_classes == "new":
                self._older = task.sequence.scenario.offset(task.sequence.sizes, task.index)
        later = task is not None and task.index > 0
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(not (later and self.bn == "freeze_after_first"))

    def _check_loss(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if the targets of ``sequence`` were read for another loss."""
        if kind_of(sequence.definitions[0].source.train.y, self.loss_name) != sequence.kind:
            raise LearnerError(
                f"loss={self.loss_name}: expected the loss of the TaskSequence, whose targets are {WHAT[sequence.kind]}. Use "
                "the same loss for both"
            )

    def on_train_end(self) -> None:
        if self.reset_optimizer is not True:
            self.optimizer_state = deepcopy(self.trainer.optimizers[0].state_dict())
            if self.reset_optimizer == "moments":
                clear_moments(self.optimizer_state)


def clear_moments(optimizer_state: dict[str, Any]) -> None:
    """Set all tensors in the state of an optimiser to 0, in place, except the number of steps."""
    for state in optimizer_state["state"].values():
        for name, value in state.items():
            if name != "step" and isinstance(value, Tensor):
                value.zero_()


def learner_of(module: L.LightningModule) -> Learner:
    """Return ``module`` as a Learner, for a strategy that changes the training step.

    Raises:
        ConfigError: It is another LightningModule.
    """
    if not isinstance(module, Learner):
        raise ConfigError(f"LightningModule: expected clbench.learner.Learner, got {type(module).__name__}")
    return module


def steps_of(trainer: L.Trainer) -> int:
    """Return the number of optimiser steps of one task, limited by ``max_epochs`` and ``max_steps``; -1 if neither is set.

    ``Trainer.estimated_stepping_batches`` is not used, because it would create the loader before a checkpoint has restored its
    position.
    """
    epochs = trainer.max_epochs or 1
    if epochs < 0:
        return trainer.max_steps
    batches, limit = len(task_of(trainer).train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = -(-batches // trainer.accumulate_grad_batches) * epochs
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def learner_outputs(learner: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the outputs (N, ..., C) that compete and the targets of a batch, for importance. Classes come last."""
    outputs = learner(batch.x, batch.task)
    if isinstance(learner, Learner):
        outputs = learner.competing(outputs, batch.y)
    return outputs.movedim(1, -1) if outputs.dim() == 4 else outputs, batch.y
