"""Check the step size of SGD against a penalty."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import SGD, Optimizer

from clbench.strategies.penalty_state import PenaltyState, sgd_bound


def check_step_size(state: PenaltyState, optimizers: list[Optimizer]) -> Iterator[tuple[str, str]]:
    """Check the learning rate of SGD against the penalty. The step size of Adam does not depend on the gradient norm."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, SGD) else []:
            stiffness, bound = state.stiffness(group["lr"]), sgd_bound(group)
            if stiffness > bound:
                largest = state.lam * bound / stiffness
                yield (
                    "step_too_large",
                    f"SGD with lr={group['lr']:g} and lam={state.lam:g} is unstable: lr*lam*max importance = {stiffness:.3g}, "
                    f"but the steps are stable only below {bound:.3g}. Use lam below {largest:.2g}, a lower lr, or Adam.",
                )
