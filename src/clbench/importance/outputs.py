"""From what a module returns to a tensor of outputs, targets and a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clbench.importance.batching import count
from clbench.importance.inputs import call, positions_that_count
from clbench.params import widen

Outputs = Callable[[nn.Module, Any], tuple[Any, ...]]
"""Function of (module, batch) that returns outputs (N, ...), targets or None, and possibly a mask of what counts."""


class Forward(NamedTuple):
    """The result of a forward pass on N examples.

    Attributes:
        z: Outputs (N, ...), such as (N, C), (N, T, C) or (N, C, H, W).
        y: Targets, None if there are none.
        mask: Which outputs count: a tensor of bool with the shape of the positions or of the outputs. None counts all of them.
    """

    z: Tensor
    y: Any = None
    mask: Tensor | None = None

    def detached(self) -> Forward:
        """Return the same result with outputs without history, in float32 or wider."""
        return self._replace(z=widen(self.z.detach()))


class WithLoss(tuple[Any, ...]):
    """Outputs, targets and perhaps a mask, with the ``loss`` that the module computed of them."""

    loss: Tensor | None = None


def default_outputs(module: nn.Module, batch: Any) -> tuple[Any, ...]:
    """Return the outputs and the targets of a batch, and a mask if the batch has an ``attention_mask`` of the positions.

    A tensor is called as ``module(x)`` and has no targets. A sequence ``(x, y, ...)`` has the targets ``y``. The entries of a
    mapping are passed by name, and an entry ``labels``, ``label``, ``targets``, ``target`` or ``y`` has the targets. If the
    module returns several tensors, the one named ``logits`` is taken, or the only one with a floating-point dtype.

    Args:
        module: The module.
        batch: A tensor, sequence or mapping, see above.

    Raises:
        ValueError: The batch or what the module returns can be read in more than one way.

    Example:
        >>> z, y = default_outputs(nn.Linear(3, 2), [torch.ones(4, 3), torch.tensor([0, 1, 1, 0])])
        >>> z.shape, y.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    returned, y = call(module, batch)
    z = select(returned, batch)
    mask = positions_that_count(batch, z)
    found = WithLoss((z, y) if mask is None else (z, y, mask))
    found.loss = own_loss(returned)
    return found


def returned_outputs(module: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Return what the module returns, unchanged, and the targets. See ``default_outputs``."""
    return call(module, batch)


def is_default(outputs: Outputs) -> bool:
    """Return whether ``outputs`` is ``default_outputs``, possibly wrapped."""
    return unwrap(outputs) is default_outputs


def forward(outputs: Outputs, module: nn.Module, batch: Any) -> Forward:
    """Return the outputs, targets and mask of a batch.

    Raises:
        ValueError: ``outputs`` returned something else.
    """
    found = outputs(module, batch)
    if not isinstance(found, tuple | list) or len(found) not in (2, 3):
        raise ValueError(
            f"outputs=fn: expected fn(module, batch) to return (outputs, targets) or (outputs, targets, mask), got "
            f"{_described(found)}. Return None for targets that do not exist"
        )
    result = Forward(*found)
    check_outputs(result.z, count(batch), batch)
    if result.mask is not None and (not isinstance(result.mask, Tensor) or result.mask.dtype != torch.bool):
        raise ValueError(
            f"mask of the outputs: expected a tensor of bool, got {getattr(result.mask, 'dtype', _described(result.mask))}. "
            "Use mask.bool()"
        )
    return result


def _entries(returned: Any) -> dict[Any, Any]:
    """Return what a module returned by name or number."""
    if isinstance(returned, Tensor):
        return {0: returned}
    if isinstance(returned, Mapping):
        return dict(returned)
    if is_dataclass(returned):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    if isinstance(returned, tuple | list):
        return dict(zip(getattr(returned, "_fields", range(len(returned))), returned, strict=True))
    return {}


def own_loss(returned: Any) -> Tensor | None:
    """Return the loss that a module returned with its outputs, a tensor with one number."""
    for name, value in _entries(returned).items():
        if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point() and name in ("loss", 0):
            return value
    return None


def select(returned: Any, batch: Any) -> Any:
    """Return the tensor of outputs of what a module returned, or all of it if there is more than one candidate."""
    tensors = {
        name: t
        for name, t in _entries(returned).items()
        if isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 0
    }
    others = [name for name in tensors if name != "logits" and ("logits" in str(name) or str(name).startswith("pred"))]
    if "logits" in tensors and not others:
        return tensors["logits"]
    return next(iter(tensors.values())) if len(tensors) == 1 else returned


def _described(z: Any) -> str:
    """Return the type of outputs that are no tensor, with the names of what they contain."""
    names = list(_entries(z))
    return type(z).__name__ + (f" with {', '.join(map(str, names[:5]))}" if names else "")


def _selection(z: Any) -> str:
    """Return the code that selects the logits of outputs that are no tensor, or their first entry."""
    if isinstance(z, Mapping):
        return f"[{'logits' if 'logits' in z else next(iter(z), 'logits')!r}]"
    return "[0]" if isinstance(z, tuple | list) and not hasattr(z, "logits") else ".logits"


def check_outputs(z: Any, n: int, batch: Any = None) -> None:
    """Check that the outputs ``z`` of ``n`` examples are a floating-point tensor (N, ...).

    Raises:
        ValueError: They are not.
    """
    if not isinstance(z, Tensor):
        called = "module(**batch)" if isinstance(batch, Mapping) else "module(batch[0])"
        targets = "batch['labels']" if isinstance(batch, Mapping) else "batch[1]"
        raise ValueError(
            f"outputs of the module: expected a tensor (N, C), got {_described(z)}. Pass outputs=fn that selects the tensor, "
            f"such as outputs=lambda module, batch: ({called}{_selection(z)}, {targets})"
        )
    if z.dim() < 1 or z.shape[0] != n:
        raise ValueError(
            f"outputs of the module: expected shape ({n}, ...) for {n} examples, got {tuple(z.shape)}. "
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
