"""Data sets that need no download: scikit-learn's digits, and truth tables of functions of bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from clbench.errors import ConfigError

OPERATIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "and": lambda bits: bits.all(1),
    "or": lambda bits: bits.any(1),
    "xor": lambda bits: bits.sum(1) % 2 == 1,  # of n bits: their parity
    "nand": lambda bits: ~bits.all(1),
    "nor": lambda bits: ~bits.any(1),
    "xnor": lambda bits: bits.sum(1) % 2 == 0,
}


class BitOperation:
    """All 2^bits rows of the truth table of ``op``, images of one row of pixels 0 or 1; training and test are the same.

    Args:
        op: and, or, xor (parity), nand, nor, xnor.
        bits: number of inputs, 2 to 16.
        code: further inputs, the same in every row: they tell the net which operation it is.
        train, download: not used; there is one part, and nothing to read.

    Raises:
        ConfigError: unknown ``op``, or ``bits`` out of range.

    >>> BitOperation("nand").targets
    [1, 1, 1, 0]
    """

    def __init__(
        self, op: str, bits: int = 2, train: bool = True, download: bool = False, code: Sequence[int] = ()
    ) -> None:
        if op not in OPERATIONS:
            raise ConfigError(f"op={op!r} of bits is not one of {', '.join(OPERATIONS)}")
        if not 2 <= bits <= 16:
            raise ConfigError(f"bits={bits}: an operation has 2 to 16 bits")
        table = np.arange(2**bits)[:, None] >> np.arange(bits)[::-1] & 1
        codes = np.tile(np.array(code, dtype=np.uint8), (len(table), 1))
        self.data = np.hstack([table.astype(np.uint8), codes])[:, None]
        self.targets = OPERATIONS[op](table.astype(bool)).astype(int).tolist()

    def __len__(self) -> int:
        return len(self.targets)


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
