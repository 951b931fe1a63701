"""Scenarios: which outputs compete, and whether the task is known at test time (van de Ven and Tolias 2019).

task    The task of an example is known at test time. Each task has separate outputs.
domain  One output layer has the same labels in every task. The task is unknown at test time.
class   One output layer has all classes, and those seen so far compete. The task is unknown at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from clbench.errors import ConfigError, ScenarioError, expected
from clbench.nets import MultiHead, SlicedHead


@dataclass(frozen=True)
class Scenario:
    """One of the three scenarios.

    Args:
        name: task, domain or class.
        head: ``multi`` for one layer per task (task-incremental only), or ``single`` for one layer whose competing columns
            are selected.
        train_classes: Classes that compete in the training loss of a class-incremental task: the ``new`` ones of the task,
            those ``seen`` so far, or ``all`` of the sequence. At test time, those seen so far compete.

    Raises:
        ConfigError: A value is unknown, ``multi`` is not task-incremental, or ``train_classes`` is set in another scenario.

    >>> Scenario("class", head="single").slices([2, 2])  # competing columns after each task of two classes
    [(0, 2), (0, 4)]
    """

    name: str = "task"
    head: str = "multi"
    train_classes: str = "seen"

    def __post_init__(self) -> None:
        if self.name not in ("task", "domain", "class"):
            raise ConfigError(f"scenario={self.name}: expected one of task, domain, class.")
        allowed = ("multi", "single") if self.name == "task" else ("single",)
        if self.head not in allowed:
            raise ScenarioError(f"head={self.head}: expected {' or '.join(allowed)} with scenario={self.name}.")
        if self.train_classes not in ("new", "seen", "all"):
            raise ConfigError(expected("train_classes", self.train_classes, "one of new, seen, all"))
        if self.train_classes != "seen" and self.name != "class":
            raise ConfigError(
                f"train_classes={self.train_classes}: expected seen with scenario={self.name}, where the classes of a task "
                "compete. Use scenario=class, or train_classes=seen."
            )

    def check(self, sizes: Sequence[int], kind: str = "label") -> None:
        """Raise ConfigError if tasks with these numbers of classes, or targets of this kind, do not fit this scenario."""
        if self.name == "class" and kind != "label":
            raise ConfigError(
                "scenario=class: expected one label per example, so that the classes of later tasks can be added. Try "
                "scenario=domain or scenario=task."
            )
        if self.name == "domain" and len(set(sizes)) > 1:
            raise ConfigError(
                f"scenario=domain: expected tasks with equal numbers of classes, got {list(sizes)}. Make them equal, or use "
                "scenario=task or scenario=class."
            )

    def offset(self, sizes: Sequence[int], task: int) -> int:
        """Return the number that is added to a label 0..C-1 of ``task`` to get its output column."""
        return sum(sizes[:task]) if self.name == "class" else 0

    def context(self, on: int, after: int) -> int:
        """Return the ``task`` of a batch of task ``on`` when the newest task is ``after``. It selects the competing outputs.

        In the class-incremental scenario, all classes seen so far compete, so this is the newest task.
        """
        return after if self.name == "class" else on

    def slices(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Return the range of columns of one output layer that compete for each ``context``."""
        ends = list(accumulate(sizes))
        if self.name == "task":
            return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        if self.name == "class":
            return [(0, end) for end in ends]
        return [(0, sizes[0])] * len(sizes)

    def build_head(self, features: int, sizes: Sequence[int]) -> nn.Module:
        """Return the head for tasks with ``sizes`` classes, on a body with ``features`` outputs."""
        if self.head == "multi":
            return MultiHead(features, sizes)
        return SlicedHead(features, self.slices(sizes))

    @property
    def shares_outputs(self) -> bool:
        """Whether earlier tasks train the outputs of later tasks. Only then is forward transfer defined."""
        return self.name == "domain"
