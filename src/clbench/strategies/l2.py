"""L2: every parameter is equally important, the baseline of what importance is worth."""

from __future__ import annotations

import lightning as L
import torch

from clbench.params import Params, trainable
from clbench.strategies import quadratic
from clbench.strategies.arguments import one_of
from clbench.strategies.base import nothing
from clbench.strategies.patterns import Patterns
from clbench.strategies.penalty import QuadraticStrategy
from clbench.strategies.quadratic import Quadratic


class L2(QuadraticStrategy):
    """lam/2 * ||theta - theta*||^2: importance 1 at the newest anchor (Hsu et al. 2018), or at the anchor of every task.

    Args:
        lam: strength, >= 0.
        anchors: ``latest`` or ``all``.
        include, exclude: see ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` negative or not finite; unknown ``anchors``.
    """

    def __init__(
        self, lam: float = 1.0, anchors: str = "latest", include: Patterns = None, exclude: Patterns = None
    ) -> None:
        super().__init__(lam, include, exclude)
        self.anchors = one_of("strategy.anchors", anchors, ("latest", "all"))

    first_task = nothing

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        return {name: torch.ones_like(p, requires_grad=False) for name, p in trainable(pl_module).items()}

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return super().merge(old, new) if self.anchors == "all" else quadratic.recentre(old, new, decay=0.0)
