"""The indices that samplers select, read without a change of any random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DistributedSampler, RandomSampler, Sampler, SequentialSampler

from clbench.errors import StrategyError

KNOWN = {DistributedSampler.__iter__, UnrepeatedDistributedSampler.__iter__}


class SeparateState:
    """Gives the code inside ``with`` random states of its own, seeded once. It can be entered several times.

    Separate are the states of torch (CPU), NumPy and Python, and the attributes of ``owners`` and of the samplers in them:
    generators, which are replaced by seeded ones, and counters.

    Args:
        seed: Seed of all generators.
        owners: Samplers or loaders.
    """

    def __init__(self, seed: int, *owners: Any) -> None:
        self.samplers = [sampler for owner in owners for sampler in _samplers_in(owner)]
        self.attributes = [
            {name: _seeded_like(value, seed) for name, value in vars(sampler).items()} for sampler in self.samplers
        ]
        python, numpy = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()
        self.states: tuple[Any, Any, Any] = (torch.Generator().manual_seed(seed).get_state(), python, numpy)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *exception: object) -> None:
        self._swap()

    def _swap(self) -> None:
        outer = (torch.get_rng_state(), random.getstate(), np.random.get_state())
        torch.set_rng_state(self.states[0])
        random.setstate(self.states[1])
        np.random.set_state(self.states[2])
        self.states = outer
        for i, sampler in enumerate(self.samplers):
            outside = dict(vars(sampler))
            vars(sampler).clear()
            vars(sampler).update(self.attributes[i])
            self.attributes[i] = outside


def _samplers_in(owner: Any) -> list[Any]:
    """Return ``owner`` and all samplers in its attributes, each once, except objects without attributes."""
    found: dict[int, Any] = {}
    waiting = [owner]
    while waiting:
        sampler = waiting.pop()
        if id(sampler) in found or not hasattr(sampler, "__dict__"):
            continue
        found[id(sampler)] = sampler
        for name, value in vars(sampler).items():
            values = value if isinstance(value, list | tuple) and len(value) < 100 else [value]
            waiting.extend(v for v in values if isinstance(v, Sampler) or name in ("sampler", "batch_sampler"))
    return list(found.values())


def _seeded_like(value: Any, seed: int) -> Any:
    """Return a seeded generator in place of a generator, and any other value as it is."""
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).manual_seed(seed)
    if isinstance(value, np.random.Generator):
        return np.random.default_rng(seed)
    if isinstance(value, np.random.RandomState):
        return np.random.RandomState(seed % 2**32)
    return random.Random(seed) if type(value) is random.Random else value


def selected_by(sampler: Any, seed: int, most: int | None) -> list[Any]:
    """Return what one pass over a sampler or batch sampler yields, with all its random draws seeded.

    Args:
        sampler: The sampler. Its state is as before afterwards.
        seed: Seed of its draws.
        most: Number of entries to stop at. None reads as many as the length of the sampler.

    Raises:
        ConfigError: The sampler can be read only once, or its length and ``most`` are unknown.
    """
    if isinstance(sampler, Iterator):
        raise StrategyError(
            f"the sampler is a {type(sampler).__name__}, which can be read only once. Give the loader an object with __iter__, "
            "or pass the examples to measure on as data=LOADER"
        )
    length = sized_len(sampler)
    if length is None and most is None:
        raise StrategyError(
            f"the sampler {type(sampler).__name__} has no length, so it may be endless. Give it __len__, or another loader"
        )
    stop = min(n for n in (length, most) if n is not None)
    with SeparateState(seed, sampler):
        return [_plain(entry) for entry in islice(sampler, stop)]


def _plain(entry: Any) -> Any:
    """Return an index, or the list of indices of a batch, without tensors; a copy, because a sampler may reuse its list."""
    if isinstance(entry, Tensor):
        return entry.tolist()
    return [_plain(index) for index in entry] if isinstance(entry, list) else entry


def in_order(indices: list[Any]) -> list[Any]:
    """Return sorted indices, or the same list if they cannot be compared."""
    try:
        return sorted(indices)
    except TypeError:
        return indices


def undistributed(sampler: Any) -> Any:
    """Return the sampler that was given to the loader, of which Lightning made one for several processes."""
    while isinstance(sampler, DistributedSamplerWrapper):
        sampler = sampler.dataset._sampler  # type: ignore[attr-defined]
    if isinstance(sampler, DistributedSampler) and type(sampler).__iter__ in KNOWN:
        return (RandomSampler if sampler.shuffle else SequentialSampler)(sampler.dataset)  # type: ignore[arg-type]
    return sampler
