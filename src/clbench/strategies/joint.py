"""References that may see old data: joint, and joint from scratch."""

from __future__ import annotations

from typing import Any

import lightning as L

from clbench.data import Task, TaskSequence
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import snapshot
from clbench.strategies.base import Strategy


class Joint(Strategy):
    """Continue training on the mixed data of all tasks so far. An upper reference, not a continual strategy.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> joint = Joint()
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[joint]).fit(learner, datamodule=task)
        >>> joint.training_data(sequence, 1).examples, sequence[1].examples
        (8, 4)
    """

    learns_new_classes_alone = False
    shares_first_task = True  # the data of the first task is not mixed with other data
    needs_labels = False

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        return sequence.joint(index)


class JointFromScratch(Joint):
    """Train on the mixed data of all tasks so far, each time from the initial weights. The usual "offline" reference.

    Row i of the accuracy matrix R belongs to a net that learned tasks 0 to i together, so the last row is all tasks at once.

    Raises:
        ConfigError: ``bn=freeze_after_first``, which would freeze the statistics of a net that has learned nothing.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> scratch = JointFromScratch()
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[scratch]).fit(learner, datamodule=task)
        >>> scratch.training_data(sequence, 1).examples
        8
    """

    shares_first_task = True  # the first task starts from the initial weights in any case
    needs_labels = False

    def __init__(self) -> None:
        self.first: dict[str, Any] | None = None

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        refuse_frozen_statistics(learner, "joint_from_scratch")
        self.first = snapshot(learner.state_dict())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.first is None:
            self.first = snapshot(pl_module.state_dict())
        pl_module.load_state_dict(self.first)
        if isinstance(pl_module, Learner):
            pl_module.optimizer_state = None


def refuse_frozen_statistics(learner: Learner, name: str) -> None:
    """Raise ConfigError if BatchNorm would be frozen in a net that starts a later task with initial weights."""
    if learner.bn != "train":
        raise StrategyError(
            f"bn={learner.bn}: expected train, because strategy={name} starts each task with new weights. Use bn=train"
        )
