"""Deterministic transformations of a task's images, such as a permutation of the pixels or a rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class View(Protocol):
    """Transformation of a batch of images (N, C, H, W) on a device."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def to(self, device: torch.device, /) -> View: ...


@dataclass(frozen=True)
class Permutation:
    """Permute the pixels of every image in the same way: (N, C, H, W) -> (N, C, H, W).

    Args:
        order: Source pixel of each pixel, over channels, rows and columns (C*H*W,).

    >>> Permutation(torch.tensor([1, 0, 2]))(torch.tensor([[[[5, 6, 7]]]]))
    tensor([[[[6, 5, 7]]]])
    """

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.order).view_as(x)

    def to(self, device: torch.device) -> Permutation:
        return Permutation(self.order.to(device))


@dataclass(frozen=True)
class Rotation:
    """Rotate images counterclockwise about their centre with bilinear interpolation: (N, C, H, W) -> (N, C, H, W).

    Pixels from outside the image are 0. That is black, or the mean colour if pixels are normalised by mean and std.

    Args:
        grid: Source position of each pixel (1, H, W, 2), float64, see ``of``.

    >>> Rotation.of(90, height=2, width=2)(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).round().int().tolist()
    [[[[2, 4], [1, 3]]]]
    """

    grid: Tensor

    @classmethod
    def of(cls, degrees: float, height: int, width: int) -> Rotation:
        """Return the rotation of images (height, width) by ``degrees``."""
        sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        # affine_grid uses units of half heights and half widths, so the ratio preserves angles in images that are not square
        rows = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
        theta = torch.tensor([rows], dtype=torch.double)
        return cls(nn.functional.affine_grid(theta, [1, 1, height, width], align_corners=False))

    def __call__(self, x: Tensor) -> Tensor:
        grid = self.grid.to(x.dtype).expand(len(x), -1, -1, -1)
        return nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def to(self, device: torch.device) -> Rotation:
        return Rotation(self.grid.to(device, torch.get_default_dtype()))


@dataclass(frozen=True)
class NearestRotation:
    """Rotate images counterclockwise about their centre and take the nearest pixel: (N, C, H, W) -> (N, C, H, W).

    Each pixel is that of ``PIL.Image.rotate(degrees, resample=NEAREST)``, with which Mammoth (Buzzega et al. 2020) rotates MNIST.
    Pixels from outside the image are 0, as in ``Rotation``.

    Args:
        source: Source pixel of each pixel, over rows and columns (H*W,).
        is_outside: Whether the source pixel is outside the image (H*W,).

    >>> NearestRotation.of(90, height=2, width=2)(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).int().tolist()
    [[[[2, 4], [1, 3]]]]
    """

    source: Tensor
    is_outside: Tensor

    @classmethod
    def of(cls, degrees: float, height: int, width: int) -> NearestRotation:
        """Return the rotation of images (height, width) by ``degrees``, in the fixed-point arithmetic of PIL (16 bits)."""
        degrees %= 360
        sin, cos = round(math.sin(math.radians(degrees)), 15), round(math.cos(math.radians(degrees)), 15)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)

        def position(of_row: float, of_column: float, size: int) -> Tensor:
            shift = size / 2 - of_row * height / 2 - of_column * width / 2
            start = _fixed(shift + (of_row + of_column) / 2)
            return (start + _fixed(of_row) * rows + _fixed(of_column) * columns) >> 16

        row, column = position(cos, sin, height), position(-sin, cos, width)
        is_outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        return cls((row * width + column).masked_fill(is_outside, 0).flatten(), is_outside.flatten())

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(2).index_select(2, self.source).masked_fill(self.is_outside, 0).view_as(x)

    def to(self, device: torch.device) -> NearestRotation:
        return NearestRotation(self.source.to(device), self.is_outside.to(device))


def _fixed(value: float) -> int:
    """Return ``value`` as a multiple of 2**-16."""
    return math.floor(value * 2**16 + 0.5)
