"""Params: named tensors of a module, and elementwise operations on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Tensors by parameter name, with the names and shapes of ``module.named_parameters()``."""


WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Attributes in which wrappers of torch have the wrapped module."""


def named_parameters(module: nn.Module) -> Params:
    """Return the live parameters of ``module`` by name, without the prefixes of wrappers; a shared parameter appears once.

    ``torch.compile``, ``DataParallel`` and activation checkpoints wrap a module and so rename its parameters. Here a
    parameter has the same name before and after.
    """
    parallel = [
        f"{prefix}.module." if prefix else "module."
        for prefix, part in module.named_modules()
        if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel)
    ]
    return {_unwrapped(name, parallel): p for name, p in module.named_parameters()}


def _unwrapped(name: str, parallel: list[str]) -> str:
    for prefix in sorted(parallel, key=len, reverse=True):
        if name.startswith(prefix):
            name = prefix.removesuffix("module.") + name.removeprefix(prefix)
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def trainable(module: nn.Module) -> Params:
    """Return the live parameters of ``module`` that require grad, by name (``named_parameters``)."""
    return {name: p for name, p in named_parameters(module).items() if p.requires_grad}


def in_float64(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, on the CPU if its device does not have it (mps)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def widen(t: Tensor) -> Tensor:
    """Return floating-point numbers in float32 or wider."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


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


def fingerprints(params: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sum of the bits of each tensor as integers: equal on every device, whatever the order of the sum."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = {}
    for name, p in params.items():
        p = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
        bits = p.contiguous().view(-1).view(integers[p.element_size()])
        found[name] = torch.stack([b.sum(dtype=torch.int64) for b in bits.split(2**22)]).sum()  # sum() copies to int64
    return dict(zip(found, torch.stack(list(found.values())).tolist() if found else (), strict=True))


def size_in_bytes(params: Mapping[str, Tensor]) -> int:
    """Return the memory of the tensors in bytes."""
    return sum(p.numel() * p.element_size() for p in params.values())
