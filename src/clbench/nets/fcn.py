"""A small fully convolutional net, for an output per pixel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clbench.nets.cnn import image


def fcn(shape: Sequence[int], channels: Sequence[int] = (16, 32, 32)) -> nn.Sequential:
    """Return a body from images (N, C, H, W) to features (N, F, H, W): Conv 3x3 and ReLU per entry of ``channels``.

    The features of a pixel depend on the pixels at a distance of at most ``len(channels)``.

    Args:
        shape: Shape of one image, (C, H, W).
        channels: Output channels of the convolutions, at least one. The last is the number of features F.

    Raises:
        ValueError: ``shape`` is not that of an image, or there is no convolution.

    Example:
        >>> fcn((1, 12, 12), channels=(4, 8))(torch.zeros(2, 1, 12, 12)).shape
        torch.Size([2, 8, 12, 12])
    """
    depth, _, _ = image(shape)
    if not channels:
        raise ValueError(f"channels={list(channels)}: expected at least one number. Try channels=[16,32,32]")
    layers: list[nn.Module] = []
    for outputs in channels:
        layers += [nn.Conv2d(depth, outputs, 3, padding=1), nn.ReLU()]
        depth = outputs
    return nn.Sequential(*layers)
