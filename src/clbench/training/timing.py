"""Stopwatch: where the time of a run went, over all processes that worked on it."""

from __future__ import annotations

from time import perf_counter

from clbench.strategies import Strategy
from clbench.training.evaluation import Evaluation


class Stopwatch:
    """Counts from when it is made; ``load`` adds what was spent before.

    Args:
        strategy: whose ``seconds`` are those of importance.
        evaluation: whose ``seconds`` are those of evaluation.

    Attributes:
        shared: of all these seconds, those of a shared first task that another run of the sweep trained.
    """

    def __init__(self, strategy: Strategy, evaluation: Evaluation) -> None:
        self._strategy = strategy
        self._evaluation = evaluation
        self._began = perf_counter()
        self.shared = 0.0

    def spent(self) -> dict[str, float]:
        """``train`` (all that is not the other two), ``importance``, ``evaluation``; and ``shared``, which is among them."""
        importance, evaluation = self._strategy.seconds, self._evaluation.seconds
        train = perf_counter() - self._began - importance - evaluation
        return {"train": train, "importance": importance, "evaluation": evaluation, "shared": self.shared}

    def load(self, spent: dict[str, float]) -> None:
        """Continue from what ``spent()`` returned in an earlier process."""
        self._strategy.seconds, self._evaluation.seconds = spent["importance"], spent["evaluation"]
        self._began = perf_counter() - total_seconds(spent)
        self.shared = spent["shared"]


def total_seconds(spent: dict[str, float]) -> float:
    """All seconds of the loop over tasks."""
    return spent["train"] + spent["importance"] + spent["evaluation"]
