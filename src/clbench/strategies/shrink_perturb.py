"""ShrinkPerturb: before each new task, weights are made smaller and noise is added to them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn

from clbench.data import TaskSequence
from clbench.errors import StrategyError
from clbench.importance import preserve_state
from clbench.learner import Learner
from clbench.params import Params, named_parameters, trainable
from clbench.seeding import derive, generator, reseed
from clbench.strategies.argument_checks import check_choice, check_fraction, check_integer, check_strength
from clbench.strategies.base import Strategy


class ShrinkPerturb(Strategy):
    """Shrink and perturb (Ash and Adams 2020, "On warm-starting neural network training").

    When a task starts, except the first, theta <- shrink * theta + sigma * noise for every trainable weight. The net then learns
    new data as well as a fresh one, and forgets more or less of the old.

    Args:
        shrink: Factor on the weights, in [0, 1].
        sigma: Factor on the noise, >= 0.
        seed: Random seed of the noise.
        noise: ``normal`` draws from N(0, 1), as in the paper. ``fresh`` is the weights of a new net, as in the authors' code, so
            that each layer has noise of its own scale. It needs a ``Learner`` that was built from a configuration, because a
            module does not determine how it was initialised. The new net is built as the first one was, with ``net.init`` and
            ``init_from``.

    Raises:
        ConfigError: A value is out of range. When a fit starts, ``noise="fresh"`` and the module has no ``fresh_net``.

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

    def __init__(self, shrink: float = 0.6, sigma: float = 0.01, seed: int = 0, noise: str = "normal") -> None:
        self.shrink = check_fraction("shrink", shrink)
        self.sigma = check_strength("sigma", sigma)
        self.seed = check_integer("seed", seed, least=0)
        self.noise = check_choice("noise", noise, ("normal", "fresh"))
        self.started = 0

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.started = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.noise == "fresh" and not (isinstance(pl_module, Learner) and pl_module.fresh_net):
            raise StrategyError(
                "noise=fresh: expected a Learner with fresh_net, a function that returns a new net, got "
                f"{type(pl_module).__name__} without it. Set learner.fresh_net, or use noise=normal"
            )
        if trainer.ckpt_path is not None:  # another strategy may have trained the first task, see shares_first_task
            self.started = max(self.started, 1)

    @torch.no_grad()
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None:  # inside a task
            return
        if self.started:
            params = trainable(pl_module)
            noise = self._fresh(pl_module) if self.noise == "fresh" else self._normal(params)
            for name, p in params.items():
                p.mul_(self.shrink).add_(noise[name].to(p.device), alpha=self.sigma)
        self.started += 1

    def _normal(self, params: Params) -> Params:
        draws = generator(self.seed, "shrink_perturb", self.started)
        return {name: torch.randn(p.shape, generator=draws, dtype=p.dtype) for name, p in params.items()}

    def _fresh(self, learner: L.LightningModule) -> Params:
        assert isinstance(learner, Learner) and learner.fresh_net is not None
        with preserve_state(learner):
            reseed(derive(self.seed, "shrink_perturb", self.started))
            return named_parameters(nn.ModuleDict({"net": learner.fresh_net()}))

    def state_dict(self) -> dict[str, Any]:
        return {"started": self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.started = state_dict["started"]
