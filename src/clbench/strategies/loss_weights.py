"""Weights of the loss on the new batch and of the loss on old examples or old outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clbench.errors import StrategyError, expected
from clbench.learner import Learner
from clbench.strategies.argument_checks import check_tasks

LossWeights = str | float | Sequence[float]
"""``equal``, ``tasks``, the weight of the new loss in [0, 1], or such a weight for each task."""


def check_loss_weights(value: Any) -> str | float | tuple[float, ...]:
    """Return the option ``loss_weights``.

    Raises:
        ConfigError: It is neither a known name nor one or several numbers in [0, 1].
    """
    if value in ("equal", "tasks"):
        return str(value)
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or not 0 <= n <= 1 for n in numbers):
        raise StrategyError(
            expected("loss_weights", value, "equal, tasks, a number in [0, 1], or a list of one such number per task")
        )
    return float(value) if numbers == [value] else tuple(map(float, numbers))


def weight_of_new(weights: str | float | tuple[float, ...], task: int, tasks: int) -> float | None:
    """Return the weight w of the new loss in task ``task`` (from 0) of ``tasks``; the old one has 1 - w. None with ``equal``.

    ``tasks`` is w = 1/t for t tasks so far (van de Ven and Tolias 2019).

    Raises:
        ConfigError: ``weights`` is a list of another length than the number of tasks.
    """
    if weights == "equal":
        return None
    if weights == "tasks":
        return 1 / (task + 1)
    assert not isinstance(weights, str)
    check_tasks("loss_weights", weights, tasks)
    return weights[task] if isinstance(weights, tuple) else weights


def refuse_compiled(learner: Learner, what: str) -> None:
    """Raise ConfigError if the loss of ``learner`` is compiled, because it changes during training."""
    if learner.compiled:
        raise StrategyError(f"{what} with compile=True. Use compile=False")
