"""Norms of the gradients of the loss and of the penalty, for the logs and the penalty monitor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clbench.params import trainable
from clbench.strategies.base import Strategy


def gradient_norms(
    strategy: Strategy, module: nn.Module, optimizer: Optimizer, added: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the L2 norms of the gradients of the loss and of the penalty, two scalars.

    Both are over the parameters of ``optimizer``. Call this between the backward pass and the step. It changes nothing and does
    not wait for the device. If the gradient of the penalty is about 1e7 times larger than that of the loss, the norm of the
    latter is rounding error.

    Args:
        strategy: The strategy. Without a penalty the second norm is 0.
        module: The module that is trained.
        optimizer: The optimiser that is about to step.
        added: Whether the strategy has already added the gradient of the penalty, as for a callback after it in the list.
    """
    trained = trainable(module)
    names = {id(p): name for name, p in trained.items()}
    params = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"] if id(p) in names}
    state = strategy.penalty_state()
    penalty = {} if state is None else {n: g for n, g in state.gradient(trained).items() if n in params}
    loss = []
    for name, p in params.items():
        if p.grad is not None:
            loss.append(p.grad - penalty[name] if added and name in penalty else p.grad)
    return norm(loss), norm(list(penalty.values()))


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of all entries of ``tensors``, a scalar."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, torch.float32) for n in norms]))
    return total
