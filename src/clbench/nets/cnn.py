"""A small convolutional net."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clbench.nets.activation import make_activation
from clbench.nets.initialize import initialize


def cnn(
    shape: Sequence[int],
    channels: Sequence[int] = (32, 64),
    width: int = 128,
    dropout: float = 0.0,
    init: str = "torch",
    activation: str = "relu",
) -> nn.Sequential:
    """Return a body for small images: Conv 3x3, activation and 2x2 max-pooling per entry of ``channels``, then Linear.

    Args:
        shape: Shape of one image, (C, H, W). Height and width are at least ``2 ** len(channels)``.
        channels: Output channels of the convolutions. Two or three suit images of 28x28 or 32x32.
        width: Number of features.
        dropout: Dropout probability of the features.
        init: Initial weights, see ``initialize``.
        activation: One of ``clbench.nets.activation.ACTIVATIONS``, also after the linear layer.

    Raises:
        ConfigError: ``init`` or ``activation`` is unknown.
        ValueError: ``shape`` is not that of an image, or the image is too small.

    Example:
        >>> cnn((1, 8, 8), channels=(4, 8), width=16)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 16])
    """
    depth, height, width_of_image = image(shape)
    shrink = 2 ** len(channels)
    if min(height, width_of_image) < shrink:
        raise ValueError(
            f"{len(channels)} poolings: expected images of at least {shrink}x{shrink}, got {height}x{width_of_image}"
        )
    layers: list[nn.Module] = []
    for outputs in channels:
        layers += [nn.Conv2d(depth, outputs, 3, padding=1), make_activation(activation), nn.MaxPool2d(2)]
        depth = outputs
    positions = (height // shrink) * (width_of_image // shrink)
    layers += [nn.Flatten(), nn.Linear(depth * positions, width), make_activation(activation)]
    if dropout:
        layers.append(nn.Dropout(dropout))
    body = nn.Sequential(*layers)
    initialize(body, init)
    return body


def image(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``shape`` as (C, H, W).

    Raises:
        ValueError: It is not three numbers.
    """
    if len(shape) != 3:
        raise ValueError(f"this net needs images: expected inputs (channels, height, width), got shape {tuple(shape)}")
    depth, height, width = shape
    return depth, height, width
