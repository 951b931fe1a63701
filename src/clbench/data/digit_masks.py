"""Segmentation made by rule from the digits of scikit-learn: find the pixels of a digit in one of several styles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from clbench.data.toy import Digits
from clbench.errors import DataError, expected

SIDE = 12
"""Height and width of an image."""

WHITE = 16
"""Largest pixel value, as in ``Digits``."""


def _plain(canvas: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return canvas


def _inverted(canvas: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return WHITE - canvas


def _striped(canvas: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return black and white rows, exchanged inside the digit."""
    rows = WHITE * (np.arange(SIDE) % 2)[:, None]
    return np.where(mask, WHITE - rows, rows)


def _noisy(canvas: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return noise, with a grey digit."""
    noise = WHITE * random.integers(2, size=canvas.shape)
    return np.where(mask, WHITE // 2, noise)


def _gradient(canvas: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a ramp from black on the left to white on the right, with a digit that differs from it by half the range."""
    ramp = np.linspace(0, WHITE, SIDE).round().astype(int)
    return np.where(mask, (ramp + WHITE // 2) % WHITE, ramp)


STYLES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "plain": _plain,
    "inverted": _inverted,
    "striped": _striped,
    "noisy": _noisy,
    "gradient": _gradient,
}
"""Name of a style -> function of the digits (N, 12, 12), their masks and a generator that returns the images."""


class DigitMasks:
    """Images (N, 12, 12) of a digit at a random place, and which pixels belong to it: targets (N, 12, 12), 0 or 1, int64.

    A pixel belongs to the digit if its value in ``Digits`` is at least 8 of 16. All styles have the same digits, places and
    targets. Only the images differ:

    - ``plain``: bright digit on black.
    - ``inverted``: dark digit on white.
    - ``striped``: black and white rows, exchanged inside the digit.
    - ``noisy``: black and white noise with a grey digit.
    - ``gradient``: a ramp from black to white. The digit is brighter than the ramp on the left and darker on the right.

    Args:
        style: Style of the images.
        train: Whether to return the 1,437 training images instead of the 360 test images.
        root, download: Not used.

    Attributes:
        outputs: Number of values of a target, 2.

    Raises:
        ConfigError: ``style`` is unknown.

    >>> digits = DigitMasks("inverted")
    >>> digits.data.shape, round(digits.targets.mean().item(), 2)
    ((1437, 12, 12), 0.14)
    """

    outputs = 2

    def __init__(
        self, style: str = "plain", train: bool = True, root: str | None = None, download: bool = False
    ) -> None:
        if style not in STYLES:
            raise DataError(expected("style", style, f"one of {', '.join(STYLES)}"))
        random = np.random.default_rng(int(train))
        canvas = placed(Digits(train=train).data, random)
        mask = canvas >= WHITE // 2
        self.data = STYLES[style](canvas, mask, random).astype(np.uint8)
        self.targets = mask.astype(np.int64)

    def __len__(self) -> int:
        return len(self.data)


def digit_masks(styles: Sequence[str] = tuple(STYLES)) -> list[partial[DigitMasks]]:
    """Return a source for each style, for ``TaskSequence`` with ``chain``, so that each style is a task.

    Args:
        styles: Styles of ``DigitMasks``, in the order of the tasks.

    Raises:
        ConfigError: A style is unknown, or there is none.

    >>> [len(source(train=False)) for source in digit_masks(["plain", "noisy"])]
    [360, 360]
    """
    if isinstance(styles, str) or not styles or not set(styles) <= STYLES.keys():
        raise DataError(expected("styles", styles, f"a list with at least one of {', '.join(STYLES)}"))
    return [partial(DigitMasks, style) for style in styles]


def placed(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return ``images`` (N, H, W), each at a random place of a black image (N, 12, 12)."""
    number, height, width = images.shape
    canvas = np.zeros((number, SIDE, SIDE), int)
    tops, lefts = random.integers([[SIDE - height + 1], [SIDE - width + 1]], size=(2, number))
    for image, target, top, left in zip(images, canvas, tops, lefts, strict=True):
        target[top : top + height, left : left + width] = image
    return canvas
