"""A torchvision-like data set with a black frame around its images: MNIST as LeNet saw it, 32x32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clbench.errors import DataError, expected


class Padded:
    """``dataset`` with ``by`` pixels of 0 added on each side of its images.

    Args:
        dataset: a class of torchvision.datasets, or a partial of one, that has its images as an array ``data``.
        by: pixels, at least 1.
        options: of ``dataset``: ``root``, ``train``, ``download``.

    Raises:
        ConfigError: ``by`` below 1; a data set without such an array.
    """

    def __init__(self, dataset: Callable[..., Any], by: int, **options: Any) -> None:
        if by < 1:
            raise DataError(expected("by", by, "an integer >= 1"))
        inner = dataset(**options)
        data = np.asarray(getattr(inner, "data", None))
        if data.ndim not in (3, 4):
            raise DataError(
                f"data set {type(inner).__name__} has no array of images (N, H, W) or (N, H, W, C) to pad. Give the data set a "
                "transform instead, transform=torchvision.transforms.Pad(...)"
            )
        self.data = np.pad(data, [(0, 0), (by, by), (by, by), (0, 0)][: data.ndim])
        self.targets = inner.targets

    def __len__(self) -> int:
        return len(self.targets)
