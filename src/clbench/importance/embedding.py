"""Closed form of the embedding: its per-example gradient has as many rows as the example has different tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def embedding(
    layer: nn.Embedding, tokens: Tensor, g: Tensor, size: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Values of the rows that the examples touch.

    Gradients of equal tokens of one example add up before ``size`` (square or absolute value) is taken.

    Args:
        layer: the table (V, D).
        tokens: (n, ...).
        g: gradients at the output, (n, K, ..., D).
        size: elementwise.

    Returns:
        Rows (m,) and their values (m, D), summed over K; each pair of example and row once.
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
    return unique % layer.num_embeddings, size(sums).sum(1)
