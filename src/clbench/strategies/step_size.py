"""Check the step size of SGD against a penalty."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import SGD, Optimizer

from clbench.strategies.penalty_state import PenaltyState, sgd_bound


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
                    f"and its steps are stable below {bound:.3g}. Use lam below {largest:.2g}, a lower lr, or optimizer=adam",
                )
