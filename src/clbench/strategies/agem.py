"""A-GEM: keep each step from increasing the loss on old examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clbench.data import Batch
from clbench.strategies.argument_checks import check_integer
from clbench.strategies.memory import Ring
from clbench.strategies.reference_gradient import Gradient, ReferenceGradientStrategy, power_of_two


class AGEM(ReferenceGradientStrategy):
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

    shares_first_task = ("memory", "memory_fill")
    per_process = False

    def __init__(self, memory: int = 50, replay: int = 256, seed: int = 0, memory_fill: str = "stream") -> None:
        check_integer("replay", replay, hint="The paper uses 256.")
        super().__init__(memory, replay, seed, memory_fill)

    def old_batches(self) -> list[Batch]:
        assert self.replay is not None
        among = self.memory.slots_before(self._index) if isinstance(self.memory, Ring) else None
        drawn = self.recall(self.replay, among)
        return [] if drawn is None else [drawn[0]]

    def project(self, gradient: list[Tensor], references: Sequence[Gradient]) -> list[int]:
        return [0] if project(gradient, references[0]) else []


def project(gradient: list[Tensor], reference: Gradient) -> bool:
    """Remove from ``gradient``, in place, the component opposite to ``reference``. Both are lists of tensors of the same shapes.

    Returns:
        Whether there was such a component.
    """
    pairs = [(g, r) for g, r in zip(gradient, reference, strict=True) if r is not None]
    dot = torch.stack([(g * r).sum() for g, r in pairs]).sum()
    if dot >= 0:
        return False
    unit = power_of_two(reference)
    square = torch.stack([(r / unit).square().sum() for _, r in pairs]).sum()
    for g, r in pairs:
        g.sub_(dot / unit / square * (r / unit))
    return True
