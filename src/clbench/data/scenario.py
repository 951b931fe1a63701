"""Scenarios: which outputs compete, and what the net is told about the task (van de Ven and Tolias 2019).

task    the task of an example is known at test time; each task has outputs of its own.
domain  one output layer with the same labels in every task; the task is not told.
class   one output layer over all classes; those seen so far compete; the task is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from clbench.errors import ConfigError, ScenarioError
from clbench.nets import MultiHead, SlicedHead


@dataclass(frozen=True)
class Scenario:
    """One of the three scenarios.

    Args:
        name: task, domain or class.
        head: ``multi``, a layer per task (task-incremental only), or ``single``, one layer of which the columns that
            compete are used.

    Raises:
        ConfigError: unknown name or head, or ``multi`` outside task-incremental.
    """

    name: str = "task"
    head: str = "multi"

    def __post_init__(self) -> None:
        if self.name not in ("task", "domain", "class"):
            raise ConfigError(f"scenario={self.name!r} is not one of task, domain, class")
        allowed = ("multi", "single") if self.name == "task" else ("single",)
        if self.head not in allowed:
            raise ScenarioError(f"head={self.head}: expected {' or '.join(allowed)} with scenario={self.name}.")

    def check(self, sizes: Sequence[int]) -> None:
        """Raise ConfigError if tasks with these numbers of classes cannot be run in this scenario."""
        if self.name == "domain" and len(set(sizes)) > 1:
            raise ConfigError(
                f"scenario=domain shares one set of labels, but the tasks have {list(sizes)} classes: make them equal "
                "or use scenario=task or scenario=class"
            )

    def offset(self, sizes: Sequence[int], task: int) -> int:
        """What is added to a label 0..C-1 of ``task`` to give its output column."""
        return sum(sizes[:task]) if self.name == "class" else 0

    def context(self, on: int, after: int) -> int:
        """The ``task`` a batch of task ``on`` carries when the newest task is ``after``: it selects the outputs.

        Class-incremental examples compete among all classes seen so far, so they carry the newest task.
        """
        return after if self.name == "class" else on

    def slices(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Columns of one output layer that compete in the context of each task."""
        ends = list(accumulate(sizes))
        if self.name == "task":
            return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        if self.name == "class":
            return [(0, end) for end in ends]
        return [(0, sizes[0])] * len(sizes)

    def build_head(self, features: int, sizes: Sequence[int]) -> nn.Module:
        """The head for tasks with ``sizes`` classes, on a body that gives ``features``."""
        if self.head == "multi":
            return MultiHead(features, sizes)
        return SlicedHead(features, self.slices(sizes))

    @property
    def shares_outputs(self) -> bool:
        """Whether a task's outputs are trained before the task (then forward transfer is defined)."""
        return self.name == "domain"
