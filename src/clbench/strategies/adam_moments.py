"""AdamMoments: importance is the second moment that Adam has estimated, so nothing is measured."""

from __future__ import annotations

from typing import Unpack

import lightning as L
import torch

from clbench.errors import StrategyError
from clbench.params import Params, trainable, widen
from clbench.strategies.argument_checks import Strength
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy


class AdamMoments(QuadraticStrategy):
    """The penalty lam/2 * sum_t sum_i v_t,i (theta_i - theta*_t,i)^2 with the second moments v of Adam as importance.

    v_t is the bias-corrected ``exp_avg_sq`` of the optimiser when task t ends: the moving average of the squared gradients of its
    last steps (about 1 / (1 - beta2) of them). It costs nothing, but is a rougher importance than the Fisher information: the
    gradients are means over batches, so v depends on the batch size, they are clipped, and they contain the gradient of the
    penalty from the second task on. An optimiser that keeps its state (``reset_optimizer=False``) counts older tasks again.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        options: ``include`` and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` is negative or not finite. When training starts, an optimiser is neither Adam nor AdamW.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Model(BoringModel):
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> strategy = AdamMoments(lam=1.0)
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[strategy]).fit(Model())
        >>> strategy.penalty.importance["layer.weight"].shape
        torch.Size([2, 32])
    """

    shares_first_task = True
    needs_labels = False

    def __init__(self, lam: Strength = 1e4, **options: Unpack[QuadraticOptions]) -> None:
        super().__init__(lam, **options)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
                raise StrategyError(
                    f"AdamMoments with {type(optimizer).__name__}: expected Adam or AdamW, whose second moments are the "
                    "importance. Use optimizer=adam or optimizer=adamw, or strategy=ewc"
                )

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        moments = {}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if state := optimizer.state.get(p):
                        moments[p] = widen(state["exp_avg_sq"]) / (1 - group["betas"][1] ** float(state["step"]))
        return {
            name: moments[p] if p in moments else torch.zeros_like(p, requires_grad=False)
            for name, p in trainable(pl_module).items()
        }
