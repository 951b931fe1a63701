"""LearnerStrategy: a strategy whose loss depends on data, so that it needs clbench's Learner and TaskSequence."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor, nn

from clbench.data import TaskSequence
from clbench.errors import StrategyError
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.strategies.base import Strategy


class LearnerStrategy(Strategy):
    """Base of strategies that change the training step of the Learner (``terms``, ``extend``, ``weigh``, ``update``) in a fit.

    A subclass that works in several processes declares ``one_process = False``, and one that can learn batches with examples of
    several tasks ``learns_blurred = True``.

    Raises:
        ConfigError: When a fit starts, the module or the data is of another kind, or there are several processes.

    Example:
        >>> class ActivityPenalty(LearnerStrategy):
        ...     def on_train_start(self, trainer, learner):
        ...         learner.terms["activity"] = lambda batch, outputs: 0.01 * outputs.square().mean()
        >>> ActivityPenalty.needs_learner
        True
    """

    shares_first_task: bool | tuple[str, ...] = False  # a subclass may change the steps of the first task too
    needs_labels = True
    needs_learner = True
    one_process = True
    learns_blurred = False
    features: Features | None = None
    _sequence: TaskSequence | None = None

    @property
    def sequence(self) -> TaskSequence:
        """The tasks of the run."""
        assert self._sequence is not None
        return self._sequence

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self._sequence = sequence

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tear down. Lightning does not do so after an exception or Ctrl-C, and the learner would keep the changed step."""
        if isinstance(pl_module, Learner):
            self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        learner = learner_of(pl_module)
        learner.terms, learner.extend, learner.weigh, learner.update = {}, None, None, None
        if self.features is not None:
            self.features.handle.remove()
            self.features = None


class Features:
    """Stores the last output of a net's body, so that other heads can use it without another forward pass.

    Raises:
        ConfigError: The net is not a body with a head.
    """

    last: Tensor

    def __init__(self, net: nn.Module) -> None:
        if not isinstance(net, Net):
            raise StrategyError(f"net: expected a clbench.nets.Net of body and head, got {type(net).__name__}")
        self.handle = net.body.register_forward_hook(self._keep)

    def _keep(self, body: nn.Module, args: Any, features: Tensor) -> None:
        self.last = features
