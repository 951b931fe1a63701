"""Closed forms: per-example parameter gradients of a layer from its input and the gradient at its output.

For the input a and the output gradients g of example n, where k numbers the gradients of an example and p the positions that
share the weight, the chain rule at one layer gives

    linear, convolution    dW[n, k] = sum_p g[n, k, :, p] a[n, :, p]^T      (a is unfolded into patches for a convolution)
    normalisation          dw[n, k] = sum_p g[n, k, :, p] xhat[n, :, p]
    every bias             db[n, k] = sum_p g[n, k, :, p]

See Goodfellow 2015 (arXiv:1510.01799) for the linear layer and Rochette et al. 2019 (arXiv:1912.06015) for convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gradients = dict[str, Tensor]
"""Per-example gradients (n, K, *shape of the parameter) by local name. They share no memory with other tensors."""


def linear(layer: nn.Linear, a: Tensor, g: Tensor, want: set[str]) -> Gradients:
    """Return the gradients for inputs a (n, ..., I) and g (n, K, ..., O): weight (n, K, O, I), bias (n, K, O)."""
    n, k, o = g.shape[0], g.shape[1], g.shape[-1]
    g = g.reshape(n, k, -1, o)
    out = {}
    if "weight" in want:
        flat = g.transpose(2, 3).reshape(n, k * o, -1)  # (n, K O, P)
        out["weight"] = torch.bmm(flat, a.reshape(n, -1, a.shape[-1])).view(n, k, o, -1)
    if "bias" in want:
        out["bias"] = g.sum(2)
    return out


def convolution(layer: nn.Conv1d | nn.Conv2d, a: Tensor, g: Tensor, want: set[str]) -> Gradients:
    """Return the gradients for inputs a (n, I, *in) and g (n, K, O, *out).

    Returns:
        weight (n, K, O, I/groups, *kernel) and bias (n, K, O).
    """
    n, k, o = g.shape[:3]
    g = g.reshape(n, k, o, -1)
    out = {}
    if "weight" in want:
        groups = layer.groups
        patches = extract_patches(layer, a).reshape(n * groups, -1, g.shape[-1])  # (n G, I/G kernel, P)
        by_group = g.reshape(n, k, groups, o // groups, -1).transpose(1, 2).reshape(n * groups, -1, g.shape[-1])
        w = torch.bmm(by_group, patches.transpose(1, 2))  # (n G, K O/G, I/G kernel)
        w = w.view(n, groups, k, o // groups, -1).transpose(1, 2)
        out["weight"] = w.reshape(n, k, *layer.weight.shape)
    if "bias" in want:
        out["bias"] = g.sum(3)
    return out


def extract_patches(layer: nn.Conv1d | nn.Conv2d, a: Tensor) -> Tensor:
    """Return the patches seen by the kernel: (n, I, *in) -> (n, I * kernel, P)."""
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    pad = layer._reversed_padding_repeated_twice  # also set for padding='same'; last dimension first
    if any(pad):
        a = F.pad(a, pad, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    if len(kernel) == 1:
        a, kernel, stride, dilation = a.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    n, channels, *sizes = a.shape
    if math.prod(kernel) == 1:
        return a[:, :, :: stride[0], :: stride[1]].flatten(2)
    steps = [(s - d * (k - 1) - 1) // t + 1 for s, k, t, d in zip(sizes, kernel, stride, dilation, strict=True)]
    a = a.contiguous()
    along = a.stride()
    patches = a.as_strided(
        (n, channels, *kernel, *steps),
        (*along[:2], along[2] * dilation[0], along[3] * dilation[1], along[2] * stride[0], along[3] * stride[1]),
    )
    return patches.reshape(
        n, channels * math.prod(kernel), -1
    )  # one copy, row by row: 2 to 12 times faster than F.unfold


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor, g: Tensor, want: set[str]) -> Gradients:
    """Return the gradients in evaluation mode for a (n, C, ...) and g (n, K, C, ...): weight and bias (n, K, C)."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, var = layer.running_mean.to(a.dtype)[:, None], layer.running_var.to(a.dtype)
    n, c = a.shape[:2]
    g = g.reshape(n, -1, c, max(1, a[0, 0].numel()))
    out = {}
    if "weight" in want:
        centred = (a.reshape(n, c, -1) - mean).unsqueeze(1)
        out["weight"] = (g * centred).sum(3) * torch.rsqrt(var + layer.eps)
    if "bias" in want:
        out["bias"] = g.sum(3)
    return out


def layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, want: set[str]) -> Gradients:
    """Return the gradients for a (n, ..., *normalised) and g (n, K, ..., *normalised).

    Returns:
        weight and bias (n, K, *normalised).
    """
    n, k, shape = g.shape[0], g.shape[1], tuple(layer.normalized_shape)
    g = g.reshape(n, k, -1, *shape)
    out = {}
    if "weight" in want:
        xhat = F.layer_norm(a, shape, None, None, layer.eps).reshape(n, 1, -1, *shape)
        out["weight"] = (g * xhat).sum(2)
    if "bias" in want:
        out["bias"] = g.sum(2)
    return out


def group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor, want: set[str]) -> Gradients:
    """Return the gradients for a (n, C, ...) and g (n, K, C, ...): weight and bias (n, K, C)."""
    n, k, c = g.shape[:3]
    g = g.reshape(n, k, c, -1)
    out = {}
    if "weight" in want:
        xhat = F.group_norm(a, layer.num_groups, None, None, layer.eps).reshape(n, 1, c, -1)
        out["weight"] = (g * xhat).sum(3)
    if "bias" in want:
        out["bias"] = g.sum(3)
    return out


FORMS: dict[type[nn.Module], Callable[..., Gradients]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
}
"""Per-example gradients by layer type. Those of embeddings are sparse, see ``embedding``."""


def form_of(layer: nn.Module) -> type[nn.Module] | None:
    """Return the layer type whose closed form applies, or None.

    It applies to a subclass too if the subclass keeps the forward pass of its parent.
    """
    kinds: tuple[type[nn.Module], ...] = (*FORMS, nn.Embedding)
    for kind in kinds:
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return kind
    return None


def fits(layer: nn.Module, a: Tensor, n: int) -> bool:
    """Return whether the input has the layout that the closed form expects: ``n`` examples first, and all dimensions."""
    if a.dim() == 0 or a.shape[0] != n:
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return a.dim() == len(layer.kernel_size) + 2 and type(layer)._conv_forward is form_of(layer)._conv_forward  # type: ignore[union-attr]
    if isinstance(layer, nn.LayerNorm):
        return a.dim() > len(layer.normalized_shape)
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return a.dim() >= 2 and not layer.training and layer.running_mean is not None
    return a.dim() >= 2


def embedding(
    layer: nn.Embedding, tokens: Tensor, g: Tensor, square_or_abs: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the values of the rows that the examples use.

    Gradients of equal tokens of one example are added before ``square_or_abs`` is applied.

    Args:
        layer: The table (V, D).
        tokens: Row indices, (n, ...).
        g: Gradients at the output, (n, K, ..., D).
        square_or_abs: Elementwise function of a gradient.

    Returns:
        Row indices (m,) and their values (m, D), summed over K. Each pair of example and row comes once.
    """
    n, k, d = g.shape[0], g.shape[1], g.shape[-1]
    tokens = tokens.reshape(n, -1)
    g = g.reshape(n, k, -1, d).transpose(1, 2).reshape(-1, k, d)  # (n P, K, D)
    if layer.padding_idx is not None:
        real = tokens.reshape(-1) != layer.padding_idx
        g = g * real[:, None, None]
    keys = torch.arange(n, device=tokens.device)[:, None] * layer.num_embeddings + tokens
    unique, where = keys.reshape(-1).unique(return_inverse=True)
    sums = g.new_zeros(len(unique), k, d).index_add_(0, where, g)
    return unique % layer.num_embeddings, square_or_abs(sums).sum(1)
