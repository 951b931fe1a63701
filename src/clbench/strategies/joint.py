"""Joint: all tasks so far, the reference that is allowed to see old data."""

from __future__ import annotations

from clbench.data import Task, TaskSequence
from clbench.strategies.base import Strategy


class Joint(Strategy):
    """Goes on training on the mixed data of all tasks so far; an upper reference, not a continual strategy."""

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        return sequence.joint(index)
