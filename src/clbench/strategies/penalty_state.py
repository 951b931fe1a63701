"""PenaltyState: the quadratic penalty of a strategy at one moment, read by the penalty monitor and the logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from clbench.params import Params
from clbench.strategies import quadratic
from clbench.strategies.quadratic import Quadratic


class Penalty(Protocol):
    """A convex quadratic function q of the parameters with its minimum at the anchor, such as ``Quadratic``.

    A method ignores the parameters that are not in both the function and its argument.
    """

    @property
    def importance(self) -> Params:
        """The diagonal of the matrix of q, by the names of the parameters."""

    @property
    def anchor(self) -> Params:
        """The minimum, by the same names."""

    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return q(theta), a scalar."""

    def half_gradient(self, params: Mapping[str, Tensor]) -> Params:
        """Return the gradient of q / 2 at theta."""

    def curvature(self) -> float:
        """Return the largest eigenvalue of the matrix of q."""

    def size_in_bytes(self) -> int:
        """Return the memory of the tensors in bytes."""

    def state(self) -> dict[str, Any]:
        """Return q as tensors and plain values, for a checkpoint. A class method ``from_state`` reads it."""


@dataclass(frozen=True)
class PenaltyState:
    """The penalty strength/2 * q(theta), for example with q(theta) = sum_i importance_i (theta_i - anchor_i)^2 + constant.

    Attributes:
        quadratic: The function q. It has no parameters before the first task has ended (``empty``).
        strength: The factor of q/2 in the loss.
        lam: The strategy's option that scales ``strength``, for messages. The two differ only if the strategy has another
            factor too, such as ``gamma`` of Online EWC.

    Example:
        >>> import torch
        >>> q = quadratic.quadratic({"w": torch.tensor([1.0, 3.0])}, {"w": torch.zeros(2)})
        >>> PenaltyState(q, strength=2.0, lam=2.0).value({"w": torch.ones(2)})
        tensor(4.)
    """

    quadratic: Penalty
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
        return 0.5 * self.strength * self.quadratic.value(params)

    def gradient(self, params: Mapping[str, Tensor]) -> Params:
        """Return the gradient of the penalty at ``params``, for the parameters that have an importance, in their dtypes."""
        halves = self.quadratic.half_gradient(params)
        return {name: (g * self.strength).to(params[name].dtype) for name, g in halves.items()}

    def stiffness(self, lr: float) -> float:
        """Return lr * strength * largest curvature (the max importance), to compare with ``sgd_bound``.

        It is the step of gradient descent along the steepest direction of the penalty, relative to the distance from the
        anchor.
        """
        return lr * self.strength * self.quadratic.curvature()


def empty() -> Quadratic:
    """Return the quadratic of a strategy that has not learned a task yet."""
    return quadratic.quadratic({}, {})


def sgd_bound(group: dict[str, Any]) -> float:
    """Return the lr * curvature below which ``torch.optim.SGD`` is stable on a quadratic of that curvature.

    Without momentum the bound is 2. With momentum m (heavy ball) and dampening d it is 2 (1 + m) / (1 - d), and with Nesterov
    momentum 2 (1 + m) / (1 + 2 m). At the bound an eigenvalue of the update, which is linear in (weight, velocity), reaches
    -1. Weight decay is left out.

    Args:
        group: A parameter group of the optimiser.

    Example:
        >>> round(sgd_bound({"momentum": 0.9, "nesterov": False, "dampening": 0.0}), 3)
        3.8
    """
    m = group["momentum"]
    if m == 0:
        return 2.0
    scale = 1 + 2 * m if group["nesterov"] else 1 - group["dampening"]
    return 2 * (1 + m) / scale if scale > 0 else math.inf
