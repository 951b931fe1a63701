"""Calling a module on a batch: which entries of the batch are its inputs, and which are the targets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

TARGETS = ("labels", "label", "targets", "target", "y")
"""Names under which a batch may have its targets."""


def call(module: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Return what the module returns for a batch, and the targets of the batch or None.

    Raises:
        ValueError: It is not clear which entries of the batch are inputs, or the module has no ``forward``.
    """
    if isinstance(batch, Tensor):
        return _called(module, batch), None
    if isinstance(batch, Mapping):
        return _call_by_name(module, batch)
    if isinstance(batch, tuple | list) and 0 < len(batch) <= 2 and isinstance(batch[0], Mapping):
        returned, y = _call_by_name(module, batch[0])
        return returned, batch[1] if len(batch) > 1 else y
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
        f"batch: expected (x, y), x or a mapping of inputs, got {type(batch).__name__}. "
        "Pass outputs=fn with fn(module, batch) -> (outputs (N, ...), targets or None)"
    )


def _call_by_name(module: nn.Module, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Pass the entries of a mapping by name, the targets too if ``forward`` takes them, so that the module computes its loss."""
    found = [name for name in TARGETS if name in batch]
    target = found[0] if len(found) == 1 else None
    inputs = {name: value for name, value in batch.items() if name != target}
    accepted = _signature(module)
    names = {p.name for p in accepted}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted)
    unknown = [] if takes_all else [name for name in inputs if name not in names]
    if unknown and len(inputs) == 1 and numbers_of_inputs(module)[0] <= 1:
        return _called(module, *inputs.values()), batch[target] if target else None
    if unknown or len(found) > 1:
        if unknown and len(found) < 2:
            what = f"{type(module).__name__}.forward has no argument {unknown[0]!r}"
        else:
            what = f"the targets may be {found[0]!r} or {found[1]!r}"
        raise ValueError(
            f"batch with {', '.join(map(str, list(batch)[:6]))}: {what}, so the inputs and targets are unknown. Pass outputs=fn, "
            f"such as outputs=lambda m, batch: (m(batch[{next(iter(batch))!r}]), batch['labels'])"
        )
    if target is not None and (takes_all or target in names):
        inputs[target] = batch[target]
    return _called(module, **inputs), batch[target] if target is not None else None


def positions_that_count(batch: Any, z: Any) -> Tensor | None:
    """Return the ``attention_mask`` of a batch if its entries are the positions of the outputs (N, T, C), else None."""
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or not isinstance(z, Tensor) or z.dim() != 3 or mask.shape != z.shape[:2]:
        return None
    return mask.bool()


def _called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    try:
        return module(*args, **kwargs)
    except NotImplementedError as error:
        if "forward" not in str(error):
            raise
        raise ValueError(
            f"{type(module).__name__} has no forward. Define it, or pass outputs=fn, such as outputs=lambda module, batch: "
            "(module.net(batch[0]), batch[1])"
        ) from error


def _signature(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of ``forward``, an empty list if they are not known."""
    while isinstance(wrapped := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile hides the signature
        module = wrapped
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def numbers_of_inputs(module: nn.Module) -> tuple[int, float]:
    """Return the numbers of positional inputs that ``forward`` requires, and of inputs of any kind that it accepts."""
    if not (parameters := _signature(module)):
        return 1, 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    return sum(p.default is p.empty for p in positional), math.inf if variable else len(parameters)
