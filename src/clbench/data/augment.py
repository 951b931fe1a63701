"""Augmentation of training images: batched on the device, every example with random numbers of its own.

The random numbers follow from the run's seed, the task, the epoch and the batch, so a resumed run sees the images of
an uninterrupted one, and dropout draws what it draws without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.errors import DataError

Transform = Callable[[Tensor], Tensor]


class Batched:
    """A transform of a whole batch (N, C, H, W) that draws for each example apart; what it draws comes from the CPU.

    A transform that is not of this kind (torchvision.transforms.v2 draws once per call) is called on each example.
    """

    def __call__(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say how it changes a batch")


@dataclass(frozen=True)
class RandomCrop(Batched):
    """Each image moved by up to ``padding`` pixels in each direction; what comes in is 0.

    The same as torchvision's RandomCrop(size of the image, padding) on every image.
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
    """Each image mirrored, left to right, with probability ``p``."""

    p: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        mirrored = torch.rand(len(x)).lt(self.p).to(x.device)
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


@dataclass(frozen=True)
class Augmentation:
    """Transforms in turn, with random numbers from a seed; the global generators are left as they were."""

    transforms: tuple[Transform, ...]

    @classmethod
    def of(cls, transforms: Transform | Sequence[Transform]) -> Augmentation:
        """One transform or several.

        Raises:
            ConfigError: one of them cannot be called.
        """
        several = tuple(transforms) if isinstance(transforms, list | tuple) else (transforms,)
        for transform in several:
            if not callable(transform):
                raise DataError(
                    f"augment={transform} is not a transform. Give a transform or a list of them, on the command line "
                    "data.augment._target_=..."
                )
        return cls(several)

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """Images x (N, C, H, W), uint8, changed by what ``seed`` draws."""
        devices = [] if x.device.type == "cpu" else [x.device]
        with torch.random.fork_rng(devices, device_type="cuda" if not devices else x.device.type):
            torch.default_generator.manual_seed(seed)
            if x.is_cuda:
                torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
            for transform in self.transforms:
                x = transform(x) if isinstance(transform, Batched) else torch.stack([transform(one) for one in x])
        return x
