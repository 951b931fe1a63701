"""Seeds: every random choice has a generator of its own, derived from the run's seed and what the choice is for.

So a run that is resumed after task t draws what an uninterrupted run draws, and adding a random choice somewhere moves
no other.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for ``purpose`` (for example ``"shuffle"``) and its numbers (task, epoch), in [0, 2^63)."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by ``derive(...)``: the same draws whatever the device of the run."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))
