"""The references that are allowed to see old data: joint, and joint from scratch."""

from __future__ import annotations

from typing import Any

import lightning as L

from clbench.data import Task, TaskSequence
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import snapshot
from clbench.strategies.base import Strategy


class Joint(Strategy):
    """Trains on, on the mixed data of all tasks so far; an upper reference, not a continual strategy."""

    shares_first_task = True  # the mixed data of one task
    needs_labels = False

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        return sequence.joint(index)


class JointFromScratch(Joint):
    """The mixed data of all tasks so far, each time from the first weights: the usual "offline" reference.

    Row i of R is the net that has learned tasks 0 to i together, so the last row is all tasks at once.

    Raises:
        ConfigError: ``bn=freeze_after_first``: the statistics would be frozen before anything was learned.
    """

    shares_first_task = True  # it begins the first task with the first weights too
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
    """Raise ConfigError if BatchNorm would be frozen in a net that starts a later task with fresh weights."""
    if learner.bn != "train":
        raise StrategyError(f"bn={learner.bn}: strategy={name} begins each task with fresh weights. Use bn=train")
