"""ShrinkPerturb: before each new task, weights are made smaller and noise is added to them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from clbench.data import TaskSequence
from clbench.learner import Learner
from clbench.params import trainable
from clbench.seeding import generator
from clbench.strategies.argument_checks import check_fraction, check_integer, check_strength
from clbench.strategies.base import Strategy


class ShrinkPerturb(Strategy):
    """Shrink and perturb (Ash and Adams 2020, "On warm-starting neural network training").

    When a task starts, except the first, theta <- shrink * theta + noise with noise ~ N(0, sigma^2) for every trainable weight.
    The net then learns new data as well as a fresh one, and forgets more or less of the old. The authors' code adds sigma times
    a fresh initialisation instead of the normal noise of the paper.

    Args:
        shrink: Factor on the weights, in [0, 1].
        sigma: Standard deviation of the noise, >= 0.
        seed: Random seed of the noise.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> strategy, module = ShrinkPerturb(shrink=0.0, sigma=0.0), BoringModel()  # any LightningModule
        >>> for task in range(2):
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[strategy]).fit(module)
        >>> strategy.started
        2
    """

    shares_first_task = True
    needs_labels = False

    def __init__(self, shrink: float = 0.6, sigma: float = 0.01, seed: int = 0) -> None:
        self.shrink = check_fraction("shrink", shrink)
        self.sigma = check_strength("sigma", sigma)
        self.seed = check_integer("seed", seed, least=0)
        self.started = 0

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.started = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None:  # another strategy may have trained the first task, see shares_first_task
            self.started = max(self.started, 1)

    @torch.no_grad()
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None:  # inside a task
            return
        if self.started:
            draws = generator(self.seed, "shrink_perturb", self.started)
            for p in trainable(pl_module).values():
                noise = torch.randn(p.shape, generator=draws, dtype=p.dtype)
                p.mul_(self.shrink).add_(noise.to(p.device), alpha=self.sigma)
        self.started += 1

    def state_dict(self) -> dict[str, Any]:
        return {"started": self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.started = state_dict["started"]
