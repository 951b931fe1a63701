"""Data sets of noise with the interface of torchvision's CIFAR10 and CIFAR100, for tests without the real ones."""

from __future__ import annotations

from typing import Any

import numpy as np


class TenClasses:
    """Random images (N, 32, 32, 3), uint8, 60 of each class."""

    number = 10

    def __init__(self, root: str, train: bool = True, transform: Any = None, download: bool = False) -> None:
        self.targets = [label for label in range(self.number) for _ in range(60)]
        draw = np.random.default_rng(int(train))
        self.data = draw.integers(0, 256, (len(self.targets), 32, 32, 3), dtype=np.uint8)


class HundredClasses(TenClasses):
    """The same with 100 classes."""

    number = 100
