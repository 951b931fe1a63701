"""ReferenceGradientStrategy: base of the strategies that change a gradient by gradients on old examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from clbench.data import Batch
from clbench.learner import learner_of
from clbench.strategies.rehearsal import RehearsalStrategy

Gradient = Sequence[Tensor | None]
"""Gradients of a loss with respect to several parameters, None for those on which it does not depend."""


class ReferenceGradientStrategy(RehearsalStrategy):
    """Computes gradients on examples of earlier tasks before each step, and lets a subclass project the gradient.

    Accumulated gradients are projected once, before the step of the optimiser and before clipping.

    Args:
        memory: Examples kept per task.
        replay: Examples drawn for a gradient.
        seed: Random seed of the draw.
        memory_fill: ``stream`` keeps the last examples of each task, or ``end``, see ``RehearsalStrategy``.
    """

    shares_first_task: bool | tuple[str, ...] = (
        "memory",
        "memory_fill",
    )  # the other options act on examples of earlier tasks
    per_process = False

    def __init__(self, memory: int, replay: int | None, seed: int, memory_fill: str = "stream") -> None:
        super().__init__(
            memory, replay, "ring" if memory_fill == "stream" else "reservoir", seed, memory_fill=memory_fill
        )

    @abstractmethod
    def old_batches(self) -> list[Batch]:
        """Return batches of examples of earlier tasks. The gradient on each is a reference."""

    @abstractmethod
    def project(self, gradient: list[Tensor], references: Sequence[Gradient]) -> list[int]:
        """Change ``gradient`` in place, and return the numbers of the references that were added to it."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.remember(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        batches, references = self.old_batches(), []
        if not batches:
            return
        learner = learner_of(pl_module)
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        for old in batches:
            # the hook runs outside the precision context of the step
            with torch.enable_grad(), trainer.precision_plugin.forward_context():
                loss = learner.loss(learner.net(old.x, old.task), old.y)
            references.append(torch.autograd.grad(loss, params, allow_unused=True))
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        added = self.project(gradient, references)
        for i, p in enumerate(params):
            if any(references[k][i] is not None for k in added):
                # a head of an old task gets a gradient only here, and is then also subject to weight decay
                p.grad = gradient[i]


def power_of_two(reference: Gradient) -> Tensor:
    """Return a power of two near the largest absolute entry. Division by it is exact.

    The squares of the entries may underflow or overflow in float32, those of the quotients do not.
    """
    largest = torch.stack([r.abs().max() for r in reference if r is not None]).max()
    largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
    return largest / (2 * torch.frexp(largest).mantissa)
