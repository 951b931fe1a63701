"""Derived seeds and the states of the global random generators.

Every random choice has its own generator, whose seed is derived from the run's seed and the purpose of the choice. A run
that is resumed after task t therefore makes the same choices as an uninterrupted run, and a new random choice in the code
does not change any other.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Return the seed for ``purpose`` and its numbers, an integer in [0, 2^63).

    Args:
        seed: The run's seed.
        purpose: A word for the choice, for example ``"shuffle"``.
        numbers: What distinguishes choices of the same purpose, for example the task and the epoch. A purpose always has the same
            number of them, because NumPy does not distinguish a last 0 from no number.

    Example:
        >>> derive(0, "shuffle", 1) == derive(0, "shuffle", 1)
        True
        >>> derive(0, "shuffle", 1) == derive(0, "shuffle", 2)
        False
    """
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by ``derive``. It is on the CPU so that its numbers do not depend on the device."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))


def reseed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch (CPU and ``device``) as plain values."""
    kind, keys, *rest = np.random.get_state()
    numpy = [kind, np.asarray(keys).tolist(), *rest]
    states = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore the states returned by ``random_states``."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
