"""A-GEM: keep each step from increasing the loss on old examples."""

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

    Let g be the gradient on the batch and r the gradient on examples of earlier tasks. If g . r < 0, then g is replaced by
    g - (g . r / r . r) r (eq. 11), so that the loss on the old examples does not increase to first order. Accumulated
    gradients are projected once, before the step of the optimiser.

    Args:
        memory: Examples kept per task.
        replay: Examples drawn to compute r. The paper uses 256.
        seed: Random seed of the draw.
        memory_fill: ``stream`` keeps the last examples of each task. ``end`` keeps a uniform random choice of its training
            examples, without augmentation, made when the task ends.

    Raises:
        ConfigError: A value is below its minimum or unknown. When a fit starts, see ``RehearsalStrategy``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> agem = AGEM(memory=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[agem]).fit(learner, datamodule=task)
        >>> agem.memory.seen  # examples of each task that were offered to the memory
        [4, 4]
    """

    shares_first_task = ("memory", "memory_fill")  # the other options act on examples of earlier tasks
    per_process = False

    def __init__(self, memory: int = 50, replay: int = 256, seed: int = 0, memory_fill: str = "stream") -> None:
        check_integer("replay", replay, hint="The paper uses 256.")
        buffer = "ring" if memory_fill == "stream" else "reservoir"
        super().__init__(memory, replay, buffer, seed, memory_fill=memory_fill)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.remember(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        learner = learner_of(pl_module)
        assert self.replay is not None
        among = self.memory.slots_before(self._index) if isinstance(self.memory, Ring) else None
        drawn = self.recall(self.replay, among)
        if drawn is None:
            return
        old, _ = drawn
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad():
            with trainer.precision_plugin.forward_context():  # the hook runs outside the precision context of the step
                loss = learner.loss(learner.net(old.x, old.task), old.y)
            reference = torch.autograd.grad(loss, params, allow_unused=True)
        pairs = [(p, r) for p, r in zip(params, reference, strict=True) if r is not None]
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in pairs]
        if project(gradient, [r for _, r in pairs]):
            for (p, _), g in zip(pairs, gradient, strict=True):
                p.grad = g  # a head of an old task gets a gradient only here, and is then also subject to weight decay


def project(gradient: list[Tensor], reference: list[Tensor]) -> bool:
    """Remove from ``gradient``, in place, the component opposite to ``reference``. Both are lists of tensors of the same shapes.

    Returns:
        Whether there was such a component.
    """
    dot = torch.stack([(g * r).sum() for g, r in zip(gradient, reference, strict=True)]).sum()
    if dot >= 0:
        return False
    # the squares of r may underflow or overflow in float32, so r is scaled first
    largest = torch.stack([r.abs().max() for r in reference]).max()
    unit = largest / (2 * torch.frexp(largest).mantissa)  # a power of two, so scaling is exact
    square = torch.stack([(r / unit).square().sum() for r in reference]).sum()
    for g, r in zip(gradient, reference, strict=True):
        g.sub_(dot / unit / square * (r / unit))
    return True
