"""From a batch to outputs and targets, and what they must look like."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


def default_outputs(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """``x, y = batch[0], batch[1]``; outputs ``module(x)`` (N, C), targets ``y``. A bare tensor is a batch without labels.

    Raises:
        ValueError: the batch is neither a tensor nor a sequence that starts with one.
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
        f"a batch of type {type(batch).__name__} is not (x, y) or x; "
        "pass outputs=fn with fn(module, batch) -> (outputs (N, C), targets (N,) or None)"
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
    """Outputs are a floating tensor (N, C).

    Raises:
        ValueError: they are not.
    """
    if not isinstance(z, Tensor):
        raise ValueError(
            f"the module returned a {type(z).__name__}, but its outputs must be a tensor (N, C); "
            "pass outputs=fn that picks it"
        )
    if z.dim() != 2 or z.shape[0] != n:
        raise ValueError(
            f"outputs have shape {tuple(z.shape)} for {n} examples, but must be (N, C) = ({n}, C); "
            "pass outputs=fn that brings them into this shape"
        )
    if not z.is_floating_point():
        raise ValueError(f"outputs have dtype {z.dtype}, but must be floating (raw outputs, not predicted labels)")


def check_differentiable(z: Tensor) -> None:
    """Outputs depend on a trainable parameter.

    Raises:
        ValueError: they do not.
    """
    if z.grad_fn is None:
        raise ValueError(
            "the outputs depend on no trainable parameter; set requires_grad, and do not detach them or use no_grad inside"
        )
