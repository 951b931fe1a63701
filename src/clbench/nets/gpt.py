"""A small transformer decoder for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02
"""Standard deviation of the initial weights in GPT-2."""


def gpt_small(
    shape: Sequence[int],
    vocabulary: int = 256,
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
) -> Decoder:
    """Return a transformer decoder body, from tokens (N, T) to features (N, T, width). A feature depends on no later token.

    The blocks, the initial weights and the places of dropout are those of GPT-2 (Radford et al. 2019, "Language models are
    unsupervised multitask learners", section 2.3): LayerNorm before attention and before the MLP, a final LayerNorm, and learned
    positions. The head of the net is not tied to the embedding, because tasks may have separate heads.

    Args:
        shape: Shape of one input, (T,), the largest number of tokens.
        vocabulary: Number of different tokens. 256 for bytes.
        layers: Number of blocks.
        width: Number of features of a token.
        heads: Number of attention heads, a divisor of ``width``.
        dropout: Dropout probability of the embedding, of the attention weights and of the output of each branch.

    Raises:
        ValueError: ``shape`` is not one number, or ``heads`` does not divide ``width``.

    Example:
        >>> body = gpt_small((16,), layers=1, width=8, heads=2)
        >>> body(torch.zeros(3, 16, dtype=torch.uint8)).shape
        torch.Size([3, 16, 8])
    """
    if len(shape) != 1:
        raise ValueError(f"net=gpt_small needs tokens: expected inputs (tokens,), got shape {tuple(shape)}")
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads}: expected a divisor of width={width}. Try heads=1")
    decoder = Decoder(shape[0], vocabulary, [Block(width, heads, dropout) for _ in range(layers)], width, dropout)
    initialize(decoder)
    return decoder


class Decoder(nn.Module):
    """Embedding of tokens and positions, ``blocks``, and a final LayerNorm. See ``gpt_small``."""

    def __init__(self, length: int, vocabulary: int, blocks: Sequence[Block], width: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (N, T, F) of integer tokens (N, T).

        Raises:
            ValueError: The inputs are not integers, or there are more than the positions.
        """
        if x.is_floating_point() or x.ndim != 2 or x.shape[1] > self.positions.num_embeddings:
            raise ValueError(
                f"net=gpt_small: expected integer tokens (N, T) with T at most {self.positions.num_embeddings}, got {x.dtype} "
                f"{tuple(x.shape)}"
            )
        h = self.tokens(x.long()) + self.positions(torch.arange(x.shape[1], device=x.device))  # (N, T, F) + (T, F)
        features: Tensor = self.norm(self.blocks(self.dropout(h)))
        return features


class Block(nn.Module):
    """Causal self-attention and an MLP with one hidden layer of 4 F, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Return the features (N, T, F) after the block."""
        h = h + F.dropout(self.project(self._attention(self.norm_attention(h))), self.dropout, self.training)
        hidden = F.gelu(self.expand(self.norm_mlp(h)))  # (N, T, 4 F)
        return h + F.dropout(self.contract(hidden), self.dropout, self.training)

    def _attention(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x (N, heads, T, F / heads)
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return attended.transpose(1, 2).flatten(2)  # (N, T, F)


def initialize(decoder: Decoder) -> None:
    """Draw weights from N(0, 0.02^2) and set biases to 0.

    The last layers of the two branches of each block are divided by sqrt(2 L) for L blocks, so that the variance of the features
    does not grow with L.
    """
    for part in decoder.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=STD)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if name.endswith(("project.weight", "contract.weight")):
                weight.div_((2 * len(decoder.blocks)) ** 0.5)
