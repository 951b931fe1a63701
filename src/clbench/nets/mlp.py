"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn


def mlp(
    shape: Sequence[int], hidden: Sequence[int] = (200, 200), batch_norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    """Multi-layer perceptron body: Linear, ReLU (, BatchNorm) (, Dropout) per hidden layer.

    BatchNorm comes after the ReLU, as in the seed document of EWC on MNIST and Fashion-MNIST.

    Args:
        shape: of one input, flattened by the net.
        hidden: widths, at least one.
        batch_norm: a BatchNorm1d after each ReLU.
        dropout: probability after each hidden layer.

    Raises:
        ValueError: ``batch_norm`` is a word such as ``no``, which would count as true.
    """
    if not isinstance(batch_norm, bool):
        raise ValueError(f"batch_norm={batch_norm} is not true or false")
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [prod(shape), *hidden]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        if batch_norm:
            layers.append(nn.BatchNorm1d(outputs))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
