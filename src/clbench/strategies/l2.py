"""L2: all parameters are equally important. The baseline for measured importances."""

from __future__ import annotations

from typing import Unpack

import lightning as L
import torch

from clbench.params import Params, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength, check_choice
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy
from clbench.strategies.quadratic import Quadratic


class L2(QuadraticStrategy):
    """The penalty lam/2 * ||theta - theta*||^2 with importance 1 (Hsu et al. 2018).

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        anchors: ``latest`` anchors the weights at their values after the latest task. ``all`` has one penalty per task.
        options: ``include`` and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` is negative or not finite, or ``anchors`` is unknown.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> l2, module = L2(lam=0.1), BoringModel()  # any LightningModule
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[l2]).fit(module)
        >>> l2.penalty.importance["layer.bias"]
        tensor([1., 1.])
    """

    shares_first_task = True
    needs_labels = False
    merges_by_name = True

    def __init__(self, lam: Strength = 1.0, anchors: str = "latest", **options: Unpack[QuadraticOptions]) -> None:
        super().__init__(lam, **options)
        self.anchors = check_choice("anchors", anchors, ("latest", "all"))

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        return {name: torch.ones_like(p, requires_grad=False) for name, p in trainable(pl_module).items()}

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return super().merge(old, new) if self.anchors == "all" else quadratic.recentre(old, new, decay=0.0)
