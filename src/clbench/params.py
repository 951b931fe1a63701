"""Params: named tensors of a module, and elementwise operations on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Tensors by parameter name, with the names and shapes of ``module.named_parameters()``."""


def trainable(module: nn.Module) -> Params:
    """Return the parameters of ``module`` that require grad, by name. They are not copied, and a shared one comes once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def snapshot(params: Mapping[str, Tensor]) -> Params:
    """Return detached copies, on the same devices and with the same dtypes."""
    return {name: p.detach().clone() for name, p in params.items()}


def zeros_like(params: Mapping[str, Tensor]) -> Params:
    """Return zeros with the same names, shapes, dtypes and devices."""
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}


def move_like(params: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Params:
    """Return ``params`` on the devices and with the strides of ``like``. Dtypes and other names do not change.

    Arithmetic on tensors with different strides is slow.
    """

    def place(p: Tensor, other: Tensor) -> Tensor:
        if p.device == other.device and p.stride() == other.stride():
            return p
        return torch.empty_like(other, dtype=p.dtype, requires_grad=False).copy_(p)

    return {name: place(p, like[name]) if name in like else p for name, p in params.items()}


def size_in_bytes(params: Mapping[str, Tensor]) -> int:
    """Return the memory of the tensors in bytes."""
    return sum(p.numel() * p.element_size() for p in params.values())
