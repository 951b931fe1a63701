"""LearnerStrategy: a strategy whose loss depends on data, so that it needs our Learner and our tasks."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor, nn

from clbench.errors import StrategyError
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.strategies.base import Strategy


class LearnerStrategy(Strategy):
    """Changes what a step of the Learner does (``terms``, ``extend``, ``update``), for the length of a fit.

    A subclass that is right in several processes declares ``one_process = False``.

    Raises:
        ConfigError: when a fit begins, a module or data of another kind, or several processes.
    """

    shares_first_task: bool | tuple[str, ...] = False  # what a subclass adds to a step, it may add in the first task
    needs_labels = True
    needs_learner = True
    one_process = True
    features: Features | None = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lightning does not tear down after an exception or Ctrl-C: the learner would keep this strategy."""
        if isinstance(pl_module, Learner):
            self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        learner = learner_of(pl_module)
        learner.terms, learner.extend, learner.update = {}, None, None
        if self.features is not None:
            self.features.handle.remove()
            self.features = None


class Features:
    """What the body of a net gave last, for asking other heads without another pass; a hook keeps it.

    Raises:
        ConfigError: the net is not a body with a head.
    """

    last: Tensor

    def __init__(self, net: nn.Module) -> None:
        if not isinstance(net, Net):
            raise StrategyError(f"a clbench.nets.Net of body and head is needed, not {type(net).__name__}")
        self.handle = net.body.register_forward_hook(self._keep)

    def _keep(self, body: nn.Module, args: Any, features: Tensor) -> None:
        self.last = features
