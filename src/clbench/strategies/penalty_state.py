"""PenaltyState: the quadratic penalty of a strategy at one moment, as the penalty monitor and the logs read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from clbench.params import Params
from clbench.strategies import quadratic
from clbench.strategies.quadratic import Quadratic


class PenaltyState(NamedTuple):
    """The penalty strength/2 * q(theta), q(theta) = sum_i importance_i (theta_i - anchor_i)^2 + constant.

    Attributes:
        quadratic: q; empty before the first task has ended (``empty``).
        strength: the factor of q/2 in the loss.
        lam: the option that scales it, for messages; the same number, unless a strategy has another factor as well.
    """

    quadratic: Quadratic
    strength: float
    lam: float

    @property
    def importance(self) -> Params:
        return self.quadratic.importance

    @property
    def anchor(self) -> Params:
        return self.quadratic.anchor

    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty at ``params``, a scalar."""
        return 0.5 * self.strength * quadratic.value(self.quadratic, params)

    def gradient(self, params: Mapping[str, Tensor]) -> Params:
        """Return the gradient of the penalty at ``params``, for those that it knows, in their dtypes."""
        halves = quadratic.half_gradient(self.quadratic, params)
        return {name: (g * self.strength).to(params[name].dtype) for name, g in halves.items()}

    def stiffness(self, lr: float) -> float:
        """Return how far a step of gradient descent moves along the steepest penalty, lr * strength * max importance."""
        return lr * self.strength * max((f.max().item() for f in self.importance.values()), default=0.0)


def empty() -> Quadratic:
    """Return the quadratic of a strategy that has not learned a task yet."""
    return quadratic.quadratic({}, {})
