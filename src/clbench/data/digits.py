"""scikit-learn's handwritten digits as a torchvision-like data set: real data that needs no download."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

TEST = 360


class Digits:
    """1,797 digits of 8x8 pixels, values 0 to 16: 1,437 to train, 360 to test, by a fixed shuffle.

    Args:
        root: not used; there is nothing to read.
        train: the training part or the test part.
        download: not used.
    """

    def __init__(self, root: str | None = None, train: bool = True, download: bool = False) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        rows = order[TEST:] if train else order[:TEST]
        self.data = images[rows].reshape(-1, 8, 8).astype(np.uint8)
        self.targets = labels[rows].tolist()
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.targets)
