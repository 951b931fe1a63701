"""Which examples are used: a sample without replacement that does not depend on how the data is batched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from clbench.importance.rows import Row, count, rows, stacked


class Counted:
    """Passes batches through and counts their examples, so that a one-shot iterable is read once.

    ``total`` is the number of examples seen so far, ``largest`` the size of the largest batch.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.total = 0
        self.largest = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            size = count(batch)
            self.total += size
            self.largest = max(self.largest, size)
            if size:
                yield batch
        if self.total == 0:
            raise ValueError("the batches hold 0 examples, at least 1 is needed; is the loader empty or used up?")


def draw(batches: Iterable[Any], samples: int | None, seed: int) -> Iterator[Any]:
    """Batches with exactly ``samples`` examples drawn without replacement; ``None`` passes all of them through.

    Every position in the iteration order gets a random key from a generator seeded with ``seed``, and the ``samples``
    smallest keys win (Fan, Muller and Rezucha 1962; Vitter 1985 calls it a random sort). So the choice depends on the
    seed and the position only, whatever the batch size, in one pass, with at most ``samples`` plus one batch of
    examples in memory. The examples come in the order of their positions, in batches no larger than those that came.

    Raises:
        ValueError: ``samples`` is below 1 or above the number of examples there are.
    """
    if samples is None:
        yield from Counted(batches)
        return
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(
            f"samples={samples!r} is not a number of examples; use an integer of at least 1, or None for all"
        )
    counted = Counted(batches)
    kept = _smallest_keys(counted, samples, seed)
    if counted.total < samples:
        raise ValueError(
            f"samples={samples} but there are {counted.total} examples, drawn without replacement; "
            f"use samples={counted.total} or fewer, or None for all"
        )
    yield from stacked(kept, counted.largest)


def _smallest_keys(counted: Counted, samples: int, seed: int) -> list[Row]:
    """The rows with the ``samples`` smallest keys, in the order of their positions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(0, dtype=torch.float64)
    positions = torch.empty(0, dtype=torch.int64)
    slots: dict[int, Row] = {}
    for batch in counted:
        size = count(batch)
        fresh = torch.rand(size, generator=generator, dtype=torch.float64)
        keys = torch.cat([keys, fresh])
        positions = torch.cat([positions, torch.arange(counted.total - size, counted.total)])
        if len(keys) > samples:
            best = keys.topk(samples, largest=False, sorted=False).indices.sort().values
            keys, positions = keys[best], positions[best]
        alive = set(positions.tolist())
        for gone in slots.keys() - alive:
            del slots[gone]
        new = sorted(alive - slots.keys())
        slots.update(zip(new, rows(batch, [p - (counted.total - size) for p in new]), strict=True))
    return [slots[p] for p in sorted(slots)]
