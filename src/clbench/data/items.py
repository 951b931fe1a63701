"""Read a torchvision-like data set as uint8 images (C, H, W), from its arrays if it has them, otherwise item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clbench.errors import DataError, expected

CHUNK = 1000
"""Number of images that are resized at a time."""


class Examples(Protocol):
    """Map-style data set of images of one ``shape`` (C, H, W) with labels."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> tuple[Tensor, int]: ...

    def labels(self) -> Tensor:
        """Return all labels (N,), int64."""

    def whole(self) -> tuple[Tensor, Tensor]:
        """Return all images (N, C, H, W), uint8, and labels (N,), int64."""


def read_examples(dataset: Any, name: str, resize: int | Sequence[int] | None = None) -> Examples:
    """Return the examples of ``dataset``, with every image resized to ``resize`` if it is given.

    A data set with arrays ``data`` and ``targets`` (or ``labels``) and without a transform is read from these arrays. Any other
    data set is read item by item. An item is a pair of an image (PIL, array or tensor) and a label.

    Args:
        dataset: Map-style data set.
        name: Name for messages.
        resize: Side of a square, or height and width.

    Raises:
        ConfigError: The data set does not contain images of one shape.
    """
    size = None if resize is None else [resize, resize] if isinstance(resize, int) else list(resize)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError(expected("resize", resize, "a side, or a height and a width, in pixels, each >= 1"))
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    data = getattr(dataset, "data", None)
    of_images, of_labels = (getattr(dataset, kind, None) for kind in ("transform", "target_transform"))
    if isinstance(data, np.ndarray | Tensor) and targets is not None and of_images is None and of_labels is None:
        return Arrays(data, targets, name, size)
    return Items(dataset, targets if of_labels is None else None, name, size)


class Arrays:
    """Examples from an array (N, H, W), (N, H, W, C) or (N, C, H, W) and a list of labels."""

    def __init__(
        self, data: np.ndarray | Tensor, targets: Any, name: str = "", size: Sequence[int] | None = None
    ) -> None:
        self.data, self.size = np.asarray(data), size
        self.y = torch.as_tensor(np.asarray(targets), dtype=torch.long)
        if self.data.dtype != np.uint8 or self.data.ndim not in (3, 4) or len(self.data) != len(self.y):
            raise DataError(
                f"data set {name}: expected uint8 images (N, H, W) or (N, H, W, C) and one target each, got "
                f"{self.data.dtype} data {self.data.shape} and {len(self.y)} targets."
            )
        self.shape: tuple[int, ...] = tuple(self._images(slice(0, 1)).shape[1:])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self._images(slice(row, row + 1))[0], int(self.y[row])

    def labels(self) -> Tensor:
        return self.y

    def whole(self) -> tuple[Tensor, Tensor]:
        if self.size is None:
            return self._images(slice(None)), self.y
        chunks = [self._images(slice(start, start + CHUNK)) for start in range(0, len(self), CHUNK)]
        return torch.cat(chunks), self.y

    def _images(self, rows: slice) -> Tensor:
        data = self.data[rows]
        x = torch.from_numpy(data if data.flags.writeable else data.copy())
        if x.ndim == 3:
            x = x[:, None]
        elif x.shape[-1] <= 4 or x.shape[1] > 4:  # channels last, unless only the first dimension can be channels
            x = x.permute(0, 3, 1, 2)
        return resized(x.contiguous(), self.size)


class Items:
    """Examples of a data set that can only be read item by item."""

    def __init__(self, dataset: Any, targets: Any = None, name: str = "", size: Sequence[int] | None = None) -> None:
        self.dataset, self.targets, self.name, self.size = dataset, targets, name, size
        try:
            self._length = len(dataset)
            self.shape: tuple[int, ...] = tuple(self._image(dataset[0][0], 0).shape)
        except (TypeError, IndexError, KeyError) as error:
            raise DataError(
                f"data set {name}: expected a data set with a length and dataset[i] = (image, label), got {error}."
            ) from error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image, label, *_ = self.dataset[row]
        x = self._image(image, row)
        if x.shape != self.shape:
            raise DataError(
                f"data set {self.name}: expected images of one shape, got {self.shape} for image 0 and {tuple(x.shape)} for "
                f"image {row}. Set resize=[H,W] for equal sizes, or a transform of the data set for equal numbers of channels."
            )
        return x, int(label)

    def labels(self) -> Tensor:
        if self.targets is not None:
            return torch.as_tensor(np.asarray(self.targets), dtype=torch.long)
        return torch.tensor([self[row][1] for row in range(len(self))])

    def whole(self) -> tuple[Tensor, Tensor]:
        x = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        y = torch.empty(len(self), dtype=torch.long)
        for row in range(len(self)):
            x[row], y[row] = self[row]
        return x, y

    def _image(self, image: Any, row: int) -> Tensor:
        if not isinstance(image, Tensor):
            if getattr(image, "mode", "RGB") not in (
                "L",
                "RGB",
            ):  # PIL modes with a palette, transparency or single bits
                image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
            image = torch.from_numpy(np.array(image))
            image = image if image.ndim == 2 else image.permute(2, 0, 1)
        x = image if image.ndim == 3 else image[None]
        if x.is_floating_point() and x.min() >= 0 and x.max() <= 1:
            x = x.mul(255).round().to(torch.uint8)
        if x.dtype != torch.uint8 or x.ndim != 3:
            raise DataError(
                f"data set {self.name}: expected uint8 pixels, or floats in [0, 1], got {x.dtype} {tuple(x.shape)} for image "
                f"{row}. Normalise with mean=... and std=... instead of a transform."
            )
        return resized(x[None], self.size)[0]


def resized(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """Return uint8 images (N, C, h, w) resized to ``size`` (H, W) by antialiased bilinear interpolation."""
    if size is None or list(x.shape[-2:]) == list(size):
        return x
    from torchvision.transforms.v2.functional import resize  # slow to import, so only when it is used

    images: Tensor = resize(x, list(size), antialias=True)
    return images
