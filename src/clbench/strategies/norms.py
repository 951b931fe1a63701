"""How large the gradients of the loss and of the penalty are: what is logged, and what the doctor judges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clbench.params import trainable
from clbench.strategies.base import Strategy
from clbench.strategies.penalty import QuadraticStrategy


def gradient_norms(
    strategy: Strategy, module: nn.Module, optimizer: Optimizer, added: bool = True
) -> tuple[Tensor, Tensor]:
    """L2 norms of the gradients of the loss and of the penalty, over the parameters of ``optimizer``; two scalars.

    To be called between the backward pass and the step. Nothing is changed and nothing waits for the device. Where the
    penalty's gradient is 1e7 times the larger, what is left of the loss's is rounding.

    Args:
        strategy: whose penalty it is; without one its norm is 0.
        module: named as the strategy knows it.
        optimizer: about to step.
        added: the strategy has already added the penalty's gradient, as for a callback that comes after it.
    """
    names = {id(p): name for name, p in trainable(module).items()}
    params = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"] if id(p) in names}
    penalty = strategy.gradient(params) if isinstance(strategy, QuadraticStrategy) else {}
    loss = []
    for name, p in params.items():
        if p.grad is not None:
            loss.append(p.grad - penalty[name] if added and name in penalty else p.grad)
    return norm(loss), norm(list(penalty.values()))


def norm(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of all entries together, a scalar."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, torch.float32) for n in norms]))
