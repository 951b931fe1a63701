"""Seeds: every random choice has a generator of its own, derived from the run's seed and what the choice is for.

So a run that is resumed after task t draws what an uninterrupted run draws, and adding a random choice somewhere moves
no other.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for ``purpose`` (for example ``"shuffle"``) and its numbers (task, epoch), in [0, 2^63)."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by ``derive(...)``: the same draws whatever the device of the run."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and torch (the CPU's and ``device``'s), as plain values."""
    kind, keys, *rest = np.random.get_state()
    numpy = [kind, np.asarray(keys).tolist(), *rest]
    states = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Bring back what ``random_states`` gave."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
