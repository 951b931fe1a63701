"""Activations of hidden layers by name."""

from __future__ import annotations

from torch import nn

from clbench.errors import ConfigError, expected

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}
"""Values of ``net.activation`` -> their classes, with the options that PyTorch sets by default."""


def make_activation(name: str) -> nn.Module:
    """Return a new activation.

    Raises:
        ConfigError: There is no such activation.

    Example:
        >>> make_activation("leaky_relu")
        LeakyReLU(negative_slope=0.01)
    """
    if name not in ACTIVATIONS:
        raise ConfigError(expected("net.activation", name, f"one of {', '.join(ACTIVATIONS)}"))
    return ACTIVATIONS[name]()
