"""GEM: keep each step from increasing the loss on the stored examples of any earlier task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from clbench.data import Batch
from clbench.params import in_float64
from clbench.strategies.argument_checks import check_strength
from clbench.strategies.memory import Ring
from clbench.strategies.reference_gradient import Gradient, ReferenceGradientStrategy, power_of_two


class GEM(ReferenceGradientStrategy):
    """Gradient episodic memory (Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning").

    Let g be the gradient on the batch and g_k that on the stored examples of task k, for each earlier task. If g . g_k < 0 for
    any k, then g is replaced by the nearest g' with g' . g_k >= 0 for all k (eq. 8). With the rows g_k of G, it is

        g' = g + G^T v,  v = argmin over v >= margin of 1/2 v^T G G^T v + g^T G^T v  (eq. 11 has margin = 0).

    Accumulated gradients are projected once, before the step of the optimiser. A step computes one more gradient, of the size
    of the net, for each earlier task.

    Args:
        memory: Examples kept per task, the last ones.
        replay: Examples drawn of each earlier task to compute g_k. None uses all that are kept, as in the paper.
        margin: Smallest entry of v, at least 0. A larger value moves more in the direction of the old tasks. The paper adds it
            to v, and the authors' code bounds v from below by it, as here. Their experiments use 0.5.
        seed: Random seed of the draw.

    Raises:
        ConfigError: A value is below its minimum. When a fit starts, see ``RehearsalStrategy``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> gem = GEM(memory=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[gem]).fit(learner, datamodule=task)
        >>> gem.memory.seen  # examples of each task that were offered to the memory
        [4, 4]
    """

    shares_first_task = ("memory",)
    per_process = False

    def __init__(self, memory: int = 50, replay: int | None = None, margin: float = 0.0, seed: int = 0) -> None:
        super().__init__(memory, replay, seed)
        self.margin = check_strength("margin", margin)

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int:
        return min(self.replay or self.each, self.each)

    def old_batches(self) -> list[Batch]:
        assert isinstance(self.memory, Ring)
        batches = []
        for task in range(self._index):
            drawn = self.recall(self.each, self.memory.slots_of(task))
            if drawn is not None:
                # one task for the batch, so that other heads have no gradient
                context = self.sequence.scenario.context(task, self._index)
                batches.append(drawn[0]._replace(task=context))
        return batches

    def project(self, gradient: list[Tensor], references: Sequence[Gradient]) -> list[int]:
        return project(gradient, references, self.margin)


def project(gradient: list[Tensor], references: Sequence[Gradient], margin: float = 0.0) -> list[int]:
    """Replace ``gradient``, in place, by the nearest one whose products with all ``references`` are not negative.

    Args:
        gradient: Tensors, one per parameter.
        references: K lists of tensors of the same shapes, or None for zeros.
        margin: Smallest multiplier of a reference.

    Returns:
        The numbers of the references that were added to the gradient, none if no product was negative.
    """
    units = [power_of_two(reference) for reference in references]
    scaled = [[None if r is None else r / u for r in ref] for ref, u in zip(references, units, strict=True)]
    products = (
        torch.stack([_inner_products(g, rs) for g, *rs in zip(gradient, *scaled, strict=True)]).sum(0).cpu().numpy()
    )
    gram, dots = products[1:, 1:], products[1:, 0]
    if (dots >= 0).all():
        return []
    least = margin * torch.stack(units).double().cpu().numpy()  # the multipliers of the scaled references
    weights = least + multipliers(gram, dots + gram @ least)
    added = np.flatnonzero(weights).tolist()
    for k in added:
        for g, r in zip(gradient, scaled[k], strict=True):
            if r is not None:
                g.add_(r, alpha=float(weights[k]))
    return added


def _inner_products(gradient: Tensor, references: list[Tensor | None]) -> Tensor:
    """Return the products of all pairs of a gradient and K references of one parameter, (K + 1, K + 1) in float64."""
    rows = in_float64(torch.stack([gradient, *(torch.zeros_like(gradient) if r is None else r for r in references)]))
    return rows.flatten(1) @ rows.flatten(1).T


def multipliers(gram: Any, dots: Any) -> Any:
    """Return the v >= 0 that minimises 1/2 v^T gram v + dots^T v, as least squares with the square root of ``gram``.

    Args:
        gram: Positive semi-definite matrix (K, K) in float64. It may be singular: tasks with parallel gradients.
        dots: Vector (K,) in the span of ``gram``.

    Returns:
        Vector (K,), all NaN if a value is not finite, so that a diverged run ends as without a projection.

    Example:
        >>> multipliers(np.eye(2), np.array([-3.0, 1.0]))
        array([3., 0.])
    """
    if not (np.isfinite(gram).all() and np.isfinite(dots).all()):
        return np.full(len(dots), np.nan)
    size = np.sqrt(gram.diagonal())
    size = np.where(size > 0, size, 1.0)
    largest = np.abs(dots / size).max() or 1.0  # nnls compares with an absolute tolerance
    values, vectors = np.linalg.eigh(gram / np.outer(size, size))
    kept = values > len(values) * np.finfo(float).eps * values[-1]
    root, vectors = np.sqrt(values[kept]), vectors[:, kept]
    v, _ = nnls(root[:, None] * vectors.T, -(vectors.T @ (dots / size / largest)) / root)
    return v * largest / size
