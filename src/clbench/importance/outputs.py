"""From a batch to outputs and targets, and checks of the outputs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

Outputs = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]
"""Function of (module, batch) that returns outputs (N, C) and targets (N,) or None."""


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
        return _called(module, batch), None
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        required, possible = numbers_of_inputs(module)
        if required > 1 or (possible > 1 and len(batch) > 2):
            raise ValueError(
                f"{type(module).__name__}.forward takes more than one input and a batch has {len(batch)} entries, so the "
                "inputs among them are unknown. Pass outputs=fn, such as outputs=lambda m, batch: (m(batch[0], batch[1]), "
                "batch[2])"
            )
        return _called(module, batch[0]), batch[1] if len(batch) > 1 else None
    raise ValueError(
        f"batch: expected (x, y) or x, got {type(batch).__name__}. "
        "Pass outputs=fn with fn(module, batch) -> (outputs (N, C), targets (N,) or None)"
    )


def _called(module: nn.Module, x: Tensor) -> Any:
    try:
        return module(x)
    except NotImplementedError as error:
        if "forward" not in str(error):
            raise
        raise ValueError(
            f"{type(module).__name__} has no forward. Define it, or pass outputs=fn, such as outputs=lambda module, batch: "
            "(module.net(batch[0]), batch[1])"
        ) from error


def numbers_of_inputs(module: nn.Module) -> tuple[int, float]:
    """Return the numbers of positional inputs that ``forward`` requires, and of inputs of any kind that it accepts."""
    while isinstance(wrapped := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile hides the signature
        module = wrapped
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return 1, 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    return sum(p.default is p.empty for p in positional), math.inf if variable else len(parameters)


def _described(z: Any) -> str:
    """Return the type of outputs that are no tensor, with the names of what they contain."""
    names: list[Any] = []
    if isinstance(z, Mapping):
        names = list(z)
    elif is_dataclass(z):
        names = [field.name for field in fields(z)]
    elif isinstance(z, tuple):
        names = list(getattr(z, "_fields", range(len(z))))
    return type(z).__name__ + (f" with {', '.join(map(str, names[:5]))}" if names else "")


def _selection(z: Any) -> str:
    """Return the code that selects the logits of outputs that are no tensor, or their first entry."""
    if isinstance(z, Mapping):
        return f"[{'logits' if 'logits' in z else next(iter(z), 'logits')!r}]"
    return "[0]" if isinstance(z, tuple | list) and not hasattr(z, "logits") else ".logits"


def check_outputs(z: Any, n: int) -> None:
    """Check that the outputs ``z`` of ``n`` examples are a floating-point tensor (N, C).

    Raises:
        ValueError: They are not.
    """
    if not isinstance(z, Tensor):
        raise ValueError(
            f"outputs of the module: expected a tensor (N, C), got {_described(z)}. Pass outputs=fn that selects the tensor, "
            f"such as outputs=lambda module, batch: (module(batch[0]){_selection(z)}, batch[1])"
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
