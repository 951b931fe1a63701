"""Views: how a task sees an image. A view is a function of a batch on a device; it draws nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class View(Protocol):
    """How a task sees an image: a function of a batch (N, C, H, W) on a device."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def to(self, device: torch.device, /) -> View: ...


@dataclass(frozen=True)
class Permutation:
    """The same shuffle of the pixels for every image: (N, C, H, W) -> (N, C, H, W)."""

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.order).view_as(x)

    def to(self, device: torch.device) -> Permutation:
        return Permutation(self.order.to(device))


@dataclass(frozen=True)
class Rotation:
    """Images turned counterclockwise about their centre, bilinear: (N, C, H, W) -> (N, C, H, W).

    What comes in from outside the image is 0: black, or the mean colour where pixels are normalised by mean and std.

    Args:
        grid: (1, H, W, 2), where each pixel comes from, float64; see ``of``.
    """

    grid: Tensor

    @classmethod
    def of(cls, degrees: float, height: int, width: int) -> Rotation:
        """The rotation of images (height, width) by ``degrees``."""
        sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        # affine_grid counts in half heights and half widths: the ratio keeps angles where an image is not square
        rows = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
        theta = torch.tensor([rows], dtype=torch.double)
        return cls(nn.functional.affine_grid(theta, [1, 1, height, width], align_corners=False))

    def __call__(self, x: Tensor) -> Tensor:
        grid = self.grid.to(x.dtype).expand(len(x), -1, -1, -1)
        return nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def to(self, device: torch.device) -> Rotation:
        return Rotation(self.grid.to(device, torch.get_default_dtype()))
