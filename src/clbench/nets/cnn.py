"""A small convolutional net."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def cnn(
    shape: Sequence[int], channels: Sequence[int] = (32, 64), width: int = 128, dropout: float = 0.0
) -> nn.Sequential:
    """Body for small images: per entry of ``channels`` Conv 3x3, ReLU, max-pooling 2x2; then Linear, ReLU (, Dropout).

    Args:
        shape: of one image, (C, H, W); height and width at least ``2 ** len(channels)``.
        channels: of the convolutions, two or three for 28x28 or 32x32.
        width: of the features.
        dropout: probability on the features.

    Raises:
        ValueError: ``shape`` is not that of an image large enough.
    """
    depth, height, width_of_image = image(shape)
    shrink = 2 ** len(channels)
    if min(height, width_of_image) < shrink:
        raise ValueError(
            f"{len(channels)} poolings need images of at least {shrink}x{shrink}, not {height}x{width_of_image}"
        )
    layers: list[nn.Module] = []
    for outputs in channels:
        layers += [nn.Conv2d(depth, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        depth = outputs
    positions = (height // shrink) * (width_of_image // shrink)
    layers += [nn.Flatten(), nn.Linear(depth * positions, width), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def image(shape: Sequence[int]) -> tuple[int, int, int]:
    """``shape`` as (C, H, W).

    Raises:
        ValueError: it is not three numbers.
    """
    if len(shape) != 3:
        raise ValueError(f"it takes images (channels, height, width), not inputs of shape {tuple(shape)}")
    depth, height, width = shape
    return depth, height, width
