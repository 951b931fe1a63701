"""Measure the time of a run, including the time of earlier processes of a resumed run."""

from __future__ import annotations

from time import perf_counter

from clbench.strategies import Strategy
from clbench.training.evaluation import Evaluation


class Stopwatch:
    """Stopwatch that starts when it is created. ``load`` adds the time of an earlier process.

    Args:
        strategy: Strategy, whose ``seconds`` measure the importance.
        evaluation: Callback, whose ``seconds`` measure the evaluation.

    Attributes:
        shared: Seconds of a shared first task that another run of the sweep trained. They are part of the total.
    """

    def __init__(self, strategy: Strategy, evaluation: Evaluation) -> None:
        self._strategy = strategy
        self._evaluation = evaluation
        self._start = perf_counter()
        self.shared = 0.0

    def spent(self) -> dict[str, float]:
        """Return the seconds: ``train``, ``importance``, ``evaluation``, and ``shared``, which is part of the other three."""
        importance, evaluation = self._strategy.seconds, self._evaluation.seconds
        train = perf_counter() - self._start - importance - evaluation
        return {"train": train, "importance": importance, "evaluation": evaluation, "shared": self.shared}

    def load(self, spent: dict[str, float]) -> None:
        """Add the seconds that ``spent()`` returned in an earlier process."""
        self._strategy.seconds, self._evaluation.seconds = spent["importance"], spent["evaluation"]
        self._start = perf_counter() - total_seconds(spent)
        self.shared = spent["shared"]


def total_seconds(spent: dict[str, float]) -> float:
    """Return the seconds of the whole loop over tasks."""
    return spent["train"] + spent["importance"] + spent["evaluation"]
