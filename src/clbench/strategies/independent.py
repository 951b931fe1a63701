"""Independent: one net per task, the reference without transfer or forgetting."""

from __future__ import annotations

from copy import deepcopy

import lightning as L
from torch import Tensor, nn

from clbench.data import TaskSequence, task_of
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import size_in_bytes
from clbench.strategies.base import Strategy
from clbench.strategies.joint import refuse_frozen_statistics


class PerTask(nn.Module):
    """One copy of a net per task. ``forward(x, task)`` calls the copy of the task."""

    def __init__(self, net: nn.Module, tasks: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(deepcopy(net) for _ in range(tasks))

    def forward(self, x: Tensor, task: int) -> Tensor:
        outputs: Tensor = self.nets[task](x, task)
        return outputs


class Independent(Strategy):
    """One net per task, all with the same initial weights. The nets share nothing, so nothing is forgotten.

    In a domain-incremental run it uses the task of an example, which continual strategies do not get. It is a reference only.

    Raises:
        ConfigError: The run is class-incremental, where nets that know some of the classes cannot compete, or
            ``bn=freeze_after_first``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> independent = Independent()
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[independent]).fit(learner, datamodule=task)
        >>> len(learner.net.nets)
        2
    """

    shares_first_task = False  # its net has other parameters
    needs_labels = False
    needs_learner = True
    learns_blurred = False

    def __init__(self) -> None:
        self._bytes = 0
        self._index = 0

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        if sequence.scenario.name == "class":
            raise StrategyError(
                "scenario=class: expected task or domain with strategy=independent, because the classes of separate nets "
                "cannot compete. Use one of these, or strategy=joint_from_scratch"
            )

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        refuse_frozen_statistics(learner, "independent")
        self._bytes = size_in_bytes(dict(learner.net.named_parameters()))
        learner.net = PerTask(learner.net, len(sequence))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and isinstance(pl_module, Learner) and not isinstance(pl_module.net, PerTask):
            sequence = task_of(trainer).sequence
            self.check(sequence)
            self.attach(pl_module, sequence)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._index = task_of(trainer).index

    def cost(self) -> dict[str, float]:
        return {"examples": 0, "bytes": (self._index + 1) * self._bytes}
