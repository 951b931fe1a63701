"""A-GEM: the step may not go against the gradient on old examples."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from clbench.data import Batch
from clbench.learner import learner_of
from clbench.strategies.argument_checks import check_integer
from clbench.strategies.memory import Ring
from clbench.strategies.rehearsal import RehearsalStrategy


class AGEM(RehearsalStrategy):
    """Averaged gradient episodic memory (Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM").

    With g the gradient on the batch and r that on examples of earlier tasks: if g . r < 0, then
    g <- g - (g . r / r . r) r (eq. 11), so that the loss on the memory does not rise to first order. Accumulated gradients
    are projected once, before the optimiser's step.

    Args:
        memory: examples kept of each task, its last ones.
        replay: examples drawn for r; the paper has 256.
        seed: see ``RehearsalStrategy``.
    """

    shares_first_task = ("memory",)  # it draws none of them, as there is no earlier task
    per_process = False

    def __init__(self, memory: int = 50, replay: int = 256, seed: int = 0) -> None:
        check_integer("replay", replay, hint="The paper has 256.")
        super().__init__(memory, replay, "ring", seed)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.remember(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        learner = learner_of(pl_module)
        assert isinstance(self.memory, Ring)
        assert self.replay is not None
        recalled = self.recall(self.replay, self.memory.before(self._index))
        if recalled is None:
            return
        old, _ = recalled
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad():
            with trainer.precision_plugin.forward_context():  # the hook lies outside that of the step
                loss = learner.loss(learner.net(old.x, old.task), old.y)
            reference = torch.autograd.grad(loss, params, allow_unused=True)
        pairs = [(p, r) for p, r in zip(params, reference, strict=True) if r is not None]
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in pairs]
        if project(gradient, [r for _, r in pairs]):
            for (p, _), g in zip(pairs, gradient, strict=True):
                p.grad = g  # of an old head too, which else stays without one and is not moved, by weight decay neither


def project(gradient: list[Tensor], reference: list[Tensor]) -> bool:
    """Take from ``gradient``, in place, its part against ``reference``; both a list of tensors, of the same shapes.

    Returns:
        Whether there was one.
    """
    dot = torch.stack([(g * r).sum() for g, r in zip(gradient, reference, strict=True)]).sum()
    if dot >= 0:
        return False
    # squares of r itself may be 0 or infinite in float32
    largest = torch.stack([r.abs().max() for r in reference]).max()
    unit = largest / (2 * torch.frexp(largest).mantissa)  # a power of two, which rounds nothing
    square = torch.stack([(r / unit).square().sum() for r in reference]).sum()
    for g, r in zip(gradient, reference, strict=True):
        g.sub_(dot / unit / square * (r / unit))
    return True
