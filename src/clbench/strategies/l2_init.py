"""L2Init: weights are pulled to their initial values, which keeps the net able to learn."""

from __future__ import annotations

from typing import Unpack

import lightning as L
import torch
from torch import nn

from clbench.params import Params, named_parameters, snapshot, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy
from clbench.strategies.penalty_state import empty
from clbench.strategies.quadratic import Quadratic


class L2Init(QuadraticStrategy):
    """The penalty lam/2 * ||theta - theta_0||^2 from the first step on (Kumar et al. 2023, "Maintaining plasticity via
    regenerative regularization").

    theta_0 are the weights before the first step, or those before the task in which a parameter is new. It preserves the ability
    to learn new tasks and not the old ones. The paper has no 1/2, so its lambda is our lam / 2.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        options: ``include`` and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` is negative or not finite.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> l2_init, module = L2Init(lam=1e-2), BoringModel()  # any LightningModule
        >>> initial = module.layer.bias.detach().clone()
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[l2_init]).fit(module)
        >>> torch.equal(l2_init.penalty.anchor["layer.bias"], initial)
        True
    """

    shares_first_task = False
    needs_labels = False
    merges_by_name = True

    def __init__(self, lam: Strength = 1e-3, **options: Unpack[QuadraticOptions]) -> None:
        super().__init__(lam, **options)

    def begin(self, module: nn.Module, resumed: bool = False) -> None:
        known, names = self.penalty or empty(), self._selected_names(module)
        new = {n: p for n, p in named_parameters(module).items() if n in names and n not in known.importance}
        self.penalty = quadratic.add(known, quadratic.quadratic(ones(new), snapshot(new)))
        super().begin(module, resumed)

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        return ones(trainable(pl_module))

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return old


def ones(params: Params) -> Params:
    """Return the importance of parameters that are equally important."""
    return {name: torch.ones_like(p, requires_grad=False) for name, p in params.items()}
