"""Data sets made by rule from the digits of scikit-learn: several labels per image, and numbers to predict."""

from __future__ import annotations

import numpy as np

from clbench.data.toy import Digits

PAIRS = {True: 4000, False: 1000}
"""Number of training and test images of ``TwoDigits``."""


class TwoDigits:
    """Images (N, 8, 16) of two digits, and which of the ten digits occur: targets (N, 10), 0 or 1. Pixels are from 0 to 16.

    4,000 training images are random pairs of the training set of ``Digits``, and 1,000 test images are pairs of its test set. A
    pair of equal digits has one label.

    Args:
        root, download: Not used.
        train: Whether to return the training set instead of the test set.

    >>> pairs = TwoDigits()
    >>> pairs.data.shape, pairs.targets[0].tolist()
    ((4000, 8, 16), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    """

    def __init__(self, root: str | None = None, train: bool = True, download: bool = False) -> None:
        digits = Digits(train=train)
        number = PAIRS[train]
        pairs = np.random.default_rng(int(train)).integers(len(digits), size=(number, 2))
        self.data = np.concatenate([digits.data[pairs[:, 0]], digits.data[pairs[:, 1]]], axis=2)
        self.targets = np.zeros((number, 10), np.uint8)
        np.put_along_axis(self.targets, np.array(digits.targets)[pairs], 1, axis=1)
        self.classes = digits.classes

    def __len__(self) -> int:
        return len(self.data)


class DigitMass:
    """Images (N, 8, 8) of ``Digits``, and how much of the stroke is in each quadrant: targets (N, 4), float32.

    A target is the share of the sum of the pixels in the upper left, upper right, lower left and lower right quadrant. Each is
    standardised by its mean and standard deviation in the training set, so a mean squared error of 1 is that of a constant. A
    target depends on the place of a pixel, so every order of the pixels is a new task.

    Args:
        root, download: Not used.
        train: Whether to return the training set instead of the test set.

    >>> DigitMass().targets.std(axis=0).round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, root: str | None = None, train: bool = True, download: bool = False) -> None:
        self.data = Digits(train=train).data
        reference = quadrant_shares(Digits(train=True).data)
        shares = quadrant_shares(self.data)
        self.targets = ((shares - reference.mean(0)) / reference.std(0)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.data)


def quadrant_shares(images: np.ndarray) -> np.ndarray:
    """Return the share of the pixel sum in each quadrant (upper left, upper right, lower left, lower right), (N, 4), float64.

    Args:
        images: (N, H, W) with even H and W.

    >>> quadrant_shares(np.array([[[3, 0], [0, 1]]])).tolist()
    [[0.75, 0.0, 0.0, 0.25]]
    """
    number, height, width = images.shape
    blocks = images.reshape(number, 2, height // 2, 2, width // 2)
    sums: np.ndarray = blocks.sum(axis=(2, 4), dtype=np.float64).reshape(number, 4)
    shares: np.ndarray = sums / sums.sum(1, keepdims=True)
    return shares
