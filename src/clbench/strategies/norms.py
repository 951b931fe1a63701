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
    """Return the L2 norms of the gradients of the loss and of the penalty, over the parameters of ``optimizer``; two scalars.

    Call it between the backward pass and the step. It changes nothing and does not wait for the device. Where the gradient of
    the penalty is 1e7 times the larger, the norm for the loss is rounding error.

    Args:
        strategy: the strategy; the norm is 0 if it has no penalty.
        module: the module that is trained.
        optimizer: the optimiser that is about to step.
        added: the strategy has already added the gradient of the penalty, as for a callback that comes after it.
    """
    names = {id(p): name for name, p in trainable(module).items()}
    params = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"] if id(p) in names}
    state = strategy.penalty_state()
    penalty = {} if state is None else state.gradient(params)
    loss = []
    for name, p in params.items():
        if p.grad is not None:
            loss.append(p.grad - penalty[name] if added and name in penalty else p.grad)
    return norm(loss), norm(list(penalty.values()))


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of all entries together, a scalar."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, torch.float32) for n in norms]))
    return total
