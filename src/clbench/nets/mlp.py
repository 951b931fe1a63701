"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from clbench.nets.activation import make_activation
from clbench.nets.initialize import initialize


def mlp(
    shape: Sequence[int],
    hidden: Sequence[int] = (200, 200),
    batch_norm: bool = False,
    dropout: float = 0.0,
    init: str = "torch",
    activation: str = "relu",
) -> nn.Sequential:
    """Return a multi-layer perceptron body: Linear, activation and optionally BatchNorm and Dropout per layer.

    BatchNorm comes after the activation, as in the tutorial on EWC for MNIST and Fashion-MNIST that this project reproduces
    first.

    Args:
        shape: Shape of one input, which is flattened.
        hidden: Widths of the hidden layers, at least one.
        batch_norm: Whether a BatchNorm1d follows each activation.
        dropout: Dropout probability after each hidden layer.
        init: Initial weights, see ``initialize``.
        activation: One of ``clbench.nets.activation.ACTIVATIONS``.

    Raises:
        ConfigError: ``init`` or ``activation`` is unknown.
        ValueError: ``batch_norm`` is not a bool. A word such as ``no`` would count as true.

    Example:
        >>> mlp((1, 8, 8), hidden=(16, 4))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 4])
    """
    if not isinstance(batch_norm, bool):
        raise ValueError(f"batch_norm={batch_norm}: expected true or false, got {batch_norm!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [prod(shape), *hidden]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), make_activation(activation)]
        if batch_norm:
            layers.append(nn.BatchNorm1d(outputs))
        if dropout:
            layers.append(nn.Dropout(dropout))
    body = nn.Sequential(*layers)
    initialize(body, init)
    return body
