"""Data sets without download: the digits of scikit-learn, and truth tables of functions of bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from clbench.errors import ConfigError

OPERATIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "and": lambda bits: bits.all(1),
    "or": lambda bits: bits.any(1),
    "xor": lambda bits: bits.sum(1) % 2 == 1,  # the parity for more than two bits
    "nand": lambda bits: ~bits.all(1),
    "nor": lambda bits: ~bits.any(1),
    "xnor": lambda bits: bits.sum(1) % 2 == 0,
}


class BitOperation:
    """Truth table of ``op`` with 2^bits examples, as images of height 1 with pixels 0 or 1. Training and test set are equal.

    Args:
        op: Operation: and, or, xor (parity), nand, nor, xnor.
        bits: Number of inputs, 2 to 16.
        code: Further inputs, the same in every example, from which the network can recognise the operation.
        train, download: Not used.

    Raises:
        ConfigError: ``op`` is unknown, or ``bits`` is out of range.

    >>> BitOperation("nand").targets
    [1, 1, 1, 0]
    """

    def __init__(
        self, op: str, bits: int = 2, train: bool = True, download: bool = False, code: Sequence[int] = ()
    ) -> None:
        if op not in OPERATIONS:
            raise ConfigError(f"op={op}: expected one of {', '.join(OPERATIONS)}.")
        if not 2 <= bits <= 16:
            raise ConfigError(f"bits={bits}: expected 2 to 16.")
        table = np.arange(2**bits)[:, None] >> np.arange(bits)[::-1] & 1
        codes = np.tile(np.array(code, dtype=np.uint8), (len(table), 1))
        self.data = np.hstack([table.astype(np.uint8), codes])[:, None]
        self.targets = OPERATIONS[op](table.astype(bool)).astype(int).tolist()

    def __len__(self) -> int:
        return len(self.targets)


TEST = 360


class Digits:
    """The 1,797 digits of scikit-learn, 8x8 pixels from 0 to 16: 1,437 for training and 360 for testing, by a fixed shuffle.

    Args:
        root: Not used.
        train: Whether to return the training set instead of the test set.
        download: Not used.

    >>> len(Digits()), len(Digits(train=False))
    (1437, 360)
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
