"""Functions of bits as a torchvision-like data set: the smallest problems there are, and they need no download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
