"""From a batch to outputs and targets, and checks of the outputs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


def default_outputs(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the outputs ``module(x)`` (N, C) and the targets ``y`` of a batch ``(x, y, ...)``.

    A bare tensor, or a sequence with one tensor, is a batch without targets.

    Args:
        module: The module.
        batch: A tensor ``x``, or a tuple or list that starts with ``x`` and ``y``.

    Raises:
        ValueError: The batch is neither a tensor nor a sequence that starts with one.

    Example:
        >>> import torch
        >>> z, y = default_outputs(nn.Linear(3, 2), [torch.ones(4, 3), torch.tensor([0, 1, 1, 0])])
        >>> z.shape, y.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    if isinstance(batch, Tensor):
        return module(batch), None
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        if len(batch) > 2 and takes_more_inputs(module):
            raise ValueError(
                f"a batch has {len(batch)} entries and {type(module).__name__}.forward takes more than one, so which of them are "
                "inputs is unknown; pass outputs=fn, such as outputs=lambda module, batch: (module(batch[0], batch[1]), batch[2])"
            )
        return module(batch[0]), batch[1] if len(batch) > 1 else None
    raise ValueError(
        f"batch: expected (x, y) or x, got {type(batch).__name__}. "
        "Pass outputs=fn with fn(module, batch) -> (outputs (N, C), targets (N,) or None)"
    )


def takes_more_inputs(module: nn.Module) -> bool:
    """Return whether ``forward`` takes more than one positional argument."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def check_outputs(z: Any, n: int) -> None:
    """Check that the outputs ``z`` of ``n`` examples are a floating-point tensor (N, C).

    Raises:
        ValueError: They are not.
    """
    if not isinstance(z, Tensor):
        raise ValueError(
            f"outputs of the module: expected a tensor (N, C), got {type(z).__name__}. "
            "Pass outputs=fn that selects the tensor"
        )
    if z.dim() != 2 or z.shape[0] != n:
        raise ValueError(
            f"outputs of the module: expected shape ({n}, C) for {n} examples, got {tuple(z.shape)}. "
            "Pass outputs=fn that reshapes them"
        )
    if not z.is_floating_point():
        raise ValueError(
            f"outputs of the module: expected a floating-point dtype, got {z.dtype}. Return raw outputs, not predicted labels"
        )


def check_differentiable(z: Tensor) -> None:
    """Check that the outputs depend on a trainable parameter.

    Raises:
        ValueError: They do not.
    """
    if z.grad_fn is None:
        raise ValueError(
            "the outputs depend on no trainable parameter. Set requires_grad, and use neither detach nor no_grad in the module"
        )
