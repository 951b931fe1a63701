"""The step size up to which SGD is stable on a quadratic penalty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch.optim import SGD, Optimizer

from clbench.strategies.penalty_state import PenaltyState


def check_step_size(state: PenaltyState, optimizers: list[Optimizer]) -> Iterator[tuple[str, str]]:
    """Check the step size of SGD against the penalty; Adam's does not depend on the size of a gradient."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, SGD) else []:
            stiffness, bound = state.stiffness(group["lr"]), sgd_bound(group)
            if stiffness > bound:
                largest = state.lam * bound / stiffness
                yield (
                    "step_too_large",
                    f"sgd lr={group['lr']:g} with lam={state.lam:g} is too stiff: lr*lam*max importance = {stiffness:.3g}, "
                    f"and its steps are stable below {bound:.3g}; use lam below {largest:.2g}, a lower lr, or optimizer=adam",
                )


def sgd_bound(group: dict[str, Any]) -> float:
    """Return the lr * curvature below which torch.optim.SGD is stable on a quadratic of that curvature.

    With momentum m (heavy ball) and dampening d, 2 (1 + m) / (1 - d); with Nesterov's, 2 (1 + m) / (1 + 2 m): where an
    eigenvalue of the step, linear in (weight, velocity), reaches -1. Without momentum 2. Weight decay is left out.
    """
    m = group["momentum"]
    if m == 0:
        return 2.0
    scale = 1 + 2 * m if group["nesterov"] else 1 - group["dampening"]
    return 2 * (1 + m) / scale if scale > 0 else math.inf
