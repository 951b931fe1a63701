"""Augmentation of training images: batched on the device, with separate random numbers for each example.

The random numbers are derived from the run's seed, the task, the epoch and the batch. So a resumed run sees the same images as
an uninterrupted run, and dropout draws the same random numbers with and without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.errors import DataError

Transform = Callable[[Tensor], Tensor]


class Batched:
    """Base class of transforms of a whole batch (N, C, H, W) that draw separately for each example, on the CPU.

    Any other transform is called on one example at a time, because torchvision.transforms.v2 draws once per call.
    """

    def __call__(self, x: Tensor) -> Tensor:
        raise TypeError(
            f"{type(self).__name__}: expected a __call__ method. Define __call__(self, x) for images (N, C, H, W)."
        )


@dataclass(frozen=True)
class RandomCrop(Batched):
    """Shift each image by up to ``padding`` pixels in each direction and fill with 0.

    Equivalent to torchvision's RandomCrop(image size, padding) on each image.

    >>> RandomCrop(padding=1)(torch.ones(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 3, 8, 8])
    """

    padding: int = 4

    def __call__(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        down, right = torch.randint(2 * self.padding + 1, (2, n, 1)).to(x.device)
        padded = nn.functional.pad(x, [self.padding] * 4)
        rows = down + torch.arange(height, device=x.device)  # (N, H)
        columns = right + torch.arange(width, device=x.device)  # (N, W)
        place = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (N, H, W)
        return padded.flatten(2).gather(2, place.view(n, 1, -1).expand(-1, channels, -1)).view_as(x)


@dataclass(frozen=True)
class RandomHorizontalFlip(Batched):
    """Flip each image left to right with probability ``p``.

    >>> RandomHorizontalFlip(p=1)(torch.tensor([[[[1, 2, 3]]]]))
    tensor([[[[3, 2, 1]]]])
    """

    p: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        mirrored = torch.rand(len(x)).lt(self.p).to(x.device)
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


@dataclass(frozen=True)
class Augmentation:
    """Transforms that are applied in order with random numbers from a seed. The global generators keep their state."""

    transforms: tuple[Transform, ...]

    @classmethod
    def of(cls, transforms: Transform | Sequence[Transform]) -> Augmentation:
        """Return the augmentation by one transform or several.

        Raises:
            ConfigError: A transform is not callable.
        """
        several = tuple(transforms) if isinstance(transforms, list | tuple) else (transforms,)
        for transform in several:
            if not callable(transform):
                raise DataError(
                    f"augment={transform}: expected a transform or a list of transforms. On the command line, use "
                    "data.augment._target_=..."
                )
        return cls(several)

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """Return the images x (N, C, H, W), uint8, transformed with random numbers from ``seed``."""
        devices = [] if x.device.type == "cpu" else [x.device]
        with torch.random.fork_rng(devices, device_type="cuda" if not devices else x.device.type):
            torch.default_generator.manual_seed(seed)
            if x.is_cuda:
                torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
            for transform in self.transforms:
                x = transform(x) if isinstance(transform, Batched) else torch.stack([transform(one) for one in x])
        return x
