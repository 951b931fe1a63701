"""L2: every parameter is equally important; the baseline that shows what a measured importance adds."""

from __future__ import annotations

from typing import Unpack

import lightning as L
import torch

from clbench.params import Params, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import check_choice
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy
from clbench.strategies.quadratic import Quadratic


class L2(QuadraticStrategy):
    """lam/2 * ||theta - theta*||^2: importance 1 at the newest anchor (Hsu et al. 2018), or at the anchor of every task.

    Args:
        lam: strength, >= 0.
        anchors: ``latest`` or ``all``.
        options: ``include``, ``exclude``, see ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` negative or not finite; unknown ``anchors``.
    """

    shares_first_task = True
    needs_labels = False
    merges_by_name = True

    def __init__(self, lam: float = 1.0, anchors: str = "latest", **options: Unpack[QuadraticOptions]) -> None:
        super().__init__(lam, **options)
        self.anchors = check_choice("anchors", anchors, ("latest", "all"))

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        return {name: torch.ones_like(p, requires_grad=False) for name, p in trainable(pl_module).items()}

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return super().merge(old, new) if self.anchors == "all" else quadratic.recentre(old, new, decay=0.0)
