"""Pad the images of a torchvision-like data set with 0, for example MNIST to 32x32 as in LeNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clbench.errors import DataError, expected


class Padded:
    """Data set with ``by`` pixels of 0 added on each side of the images.

    Args:
        dataset: Class of torchvision.datasets, or a partial of one, with its images in an array ``data``.
        by: Number of pixels, at least 1.
        options: Arguments of ``dataset``: ``root``, ``train``, ``download``.

    Raises:
        ConfigError: ``by`` is below 1, or the data set has no such array.

    >>> from clbench.data.toy import Digits
    >>> Padded(Digits, by=2).data.shape  # digits are 8x8
    (1437, 12, 12)
    """

    def __init__(self, dataset: Callable[..., Any], by: int, **options: Any) -> None:
        if by < 1:
            raise DataError(expected("by", by, "an integer >= 1"))
        inner = dataset(**options)
        data = np.asarray(getattr(inner, "data", None))
        if data.ndim not in (3, 4):
            raise DataError(
                f"data set {type(inner).__name__}: expected images in an array data (N, H, W) or (N, H, W, C). Pad with "
                "transform=torchvision.transforms.Pad(...) of the data set instead."
            )
        self.data = np.pad(data, [(0, 0), (by, by), (by, by), (0, 0)][: data.ndim])
        self.targets = inner.targets

    def __len__(self) -> int:
        return len(self.targets)
