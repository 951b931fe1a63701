"""PenaltyState: the quadratic penalty of a strategy at one moment, read by the penalty monitor and the logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clbench.params import Params
from clbench.strategies import quadratic
from clbench.strategies.quadratic import Quadratic


@dataclass(frozen=True)
class PenaltyState:
    """The penalty strength/2 * q(theta) with q(theta) = sum_i importance_i (theta_i - anchor_i)^2 + constant.

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
        """Return the gradient of the penalty at ``params``, for the parameters that have an importance, in their dtypes."""
        halves = quadratic.half_gradient(self.quadratic, params)
        return {name: (g * self.strength).to(params[name].dtype) for name, g in halves.items()}

    def stiffness(self, lr: float) -> float:
        """Return lr * strength * max importance, to compare with ``sgd_bound``.

        It is the step of gradient descent along the steepest direction of the penalty, relative to the distance from the
        anchor.
        """
        return lr * self.strength * max((f.max().item() for f in self.importance.values()), default=0.0)


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
