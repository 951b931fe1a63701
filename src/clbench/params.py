"""Params: named tensors of a module, and the elementwise arithmetic that strategies are made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""From parameter name to tensor, the names and shapes of ``module.named_parameters()``."""


def trainable(module: nn.Module) -> Params:
    """The live parameters of ``module`` that require grad, by name; a shared parameter appears once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def snapshot(params: Mapping[str, Tensor]) -> Params:
    """Detached copies, on the same device, in the same dtype."""
    return {name: p.detach().clone() for name, p in params.items()}


def zeros_like(params: Mapping[str, Tensor]) -> Params:
    """Zeros of the same names, shapes, dtypes and devices."""
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}


def placed_like(params: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Params:
    """``params`` as those of ``like`` lie, on which device and with which strides (dtypes stay); other names stay as they are.

    Arithmetic on tensors that lie differently is slow.
    """

    def moved(p: Tensor, other: Tensor) -> Tensor:
        if p.device == other.device and p.stride() == other.stride():
            return p
        return torch.empty_like(other, dtype=p.dtype, requires_grad=False).copy_(p)

    return {name: moved(p, like[name]) if name in like else p for name, p in params.items()}


def size_in_bytes(params: Mapping[str, Tensor]) -> int:
    """Memory the tensors take, in bytes."""
    return sum(p.numel() * p.element_size() for p in params.values())
