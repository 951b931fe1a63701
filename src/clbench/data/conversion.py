"""Bring images to one size and one number of channels when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clbench.errors import DataError, expected


@dataclass(frozen=True)
class Conversion:
    """Conversion of uint8 images.

    Args:
        size: Height and width of the result. None keeps those of the images.
        channels: Number of channels of the result, 1 (grey) or 3 (RGB). None keeps that of the images.

    >>> import torch
    >>> Conversion.of(resize=4, channels=3)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 3, 4, 4])
    """

    size: tuple[int, int] | None = None
    channels: int | None = None

    @classmethod
    def of(cls, resize: Any = None, channels: Any = None) -> Conversion:
        """Return the conversion with these options.

        Args:
            resize: Side of a square, or height and width.
            channels: 1 or 3.

        Raises:
            ConfigError: A value is not allowed.
        """
        if channels not in (None, 1, 3) or isinstance(channels, bool):
            raise DataError(expected("channels", channels, "1 (grey), 3 (RGB) or None"))
        if resize is None:
            return cls(None, channels)
        sides = [resize] * 2 if isinstance(resize, int) else list(resize) if isinstance(resize, list | tuple) else []
        if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
            raise DataError(expected("resize", resize, "a side, or a height and a width, in pixels, each >= 1"))
        return cls((sides[0], sides[1]), channels)

    def check(self, shape: Sequence[int], name: str) -> None:
        """Raise ConfigError if inputs of ``shape`` are no images, or their channels cannot be converted."""
        given = {"resize": self.size and list(self.size), "channels": self.channels}
        for option, value in given.items():
            if value is not None and len(shape) != 3:
                raise DataError(f"{option}={value}: expected images, but data set {name} has none. Try {option}=None.")

    def __call__(self, x: Tensor) -> Tensor:
        """Return images (N, C, H, W), uint8. Resizing is bilinear and antialiased, and grey is the luma of ITU-R 601.

        Raises:
            ConfigError: The images have other numbers of channels than 1 and 3, and ``channels`` is another one.
        """
        if self == Conversion():
            return x
        from torchvision.transforms.v2 import functional as F  # slow to import, so only when it is used

        if self.channels is not None and x.shape[1] != self.channels:
            if x.shape[1] not in (1, 3):
                raise DataError(
                    f"channels={self.channels}: expected images with 1 or 3 channels, got {x.shape[1]}. Try channels=None."
                )
            x = x.expand(-1, 3, -1, -1) if self.channels == 3 else F.rgb_to_grayscale(x)
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = F.resize(x, list(self.size), antialias=True)
        return x.contiguous()
