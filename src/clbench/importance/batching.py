"""Count, slice, move and stack the examples of a batch of any structure, and draw a subsample independent of batching."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten


class Same(NamedTuple):
    """A leaf that all examples of a batch share, such as the index of the task."""

    value: Any


Example = tuple[list[Any], TreeSpec]
"""One example taken out of its batch: the leaves (tensors without the batch dimension) and the structure they had."""


def _has_examples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def count(batch: Any) -> int:
    """Number of examples: the first dimension of the tensors in ``batch``; other leaves do not count.

    Raises:
        ValueError: there is no tensor in the batch, or the first dimensions differ.
    """
    sizes = {leaf.shape[0] for leaf in tree_flatten(batch)[0] if _has_examples(leaf)}
    if not sizes:
        raise ValueError(
            f"a batch of type {type(batch).__name__} holds no tensor with a batch dimension; "
            "yield a tensor, tuple, NamedTuple or dict of tensors"
        )
    if len(sizes) > 1:
        raise ValueError(
            f"the tensors of a batch have first dimensions {sorted(sizes)}, but dimension 0 must be the examples; "
            "put per-batch values in 0-dimensional tensors or plain numbers"
        )
    return int(sizes.pop())


def shapes(batch: Any) -> tuple[Any, ...]:
    """What two batches must share to be of one kind: the shapes of a row of each tensor."""
    return tuple(leaf.shape[1:] for leaf in tree_flatten(batch)[0] if _has_examples(leaf))


def take(batch: Any, index: slice | Tensor) -> Any:
    """The examples ``index`` of every tensor; other leaves pass through."""
    return tree_map(lambda leaf: leaf[index] if _has_examples(leaf) else leaf, batch)


def merged(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Neighbours of one kind put together until they have ``size`` examples; larger batches pass through untouched.

    What waits for its neighbours is copied, since whoever yields batches may fill the same memory again.
    """
    held: list[Any] = []
    examples = 0
    for batch in batches:
        if held and (count(batch) >= size or not _joins(held[-1], batch)):
            yield _joined(held)
            held, examples = [], 0
        examples += count(batch)
        waits = examples < size
        held.append(tree_map(lambda leaf: leaf.clone() if _has_examples(leaf) else leaf, batch) if waits else batch)
        if not waits:
            yield _joined(held)
            held, examples = [], 0
    if held:
        yield _joined(held)


def _joins(a: Any, b: Any) -> bool:
    """Same structure, examples of the same shape, and equal plain values; what cannot be compared safely does not join."""
    (left, one), (right, other) = tree_flatten(a), tree_flatten(b)

    def same(x: Any, y: Any) -> bool:
        if _has_examples(x) and _has_examples(y):
            return bool(x.shape[1:] == y.shape[1:] and x.dtype == y.dtype and x.device == y.device)
        return type(x) is type(y) and (x is None or (isinstance(x, int | float | str) and x == y))

    return one == other and all(same(x, y) for x, y in zip(left, right, strict=True))


def _joined(many: list[Any]) -> Any:
    if len(many) == 1:
        return many[0]
    columns = zip(*(tree_flatten(batch)[0] for batch in many), strict=True)
    leaves = [torch.cat(column) if _has_examples(column[0]) else column[0] for column in columns]
    return tree_unflatten(leaves, tree_flatten(many[0])[1])


def moved(batch: Any, device: torch.device) -> Any:
    """The batch on ``device``, without gradient history, usable by autograd although made in inference mode."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().to(device, non_blocking=True)
        return leaf.clone() if leaf.is_inference() else leaf

    return tree_map(move, batch)


def split_examples(batch: Any, which: Sequence[int]) -> Iterator[Example]:
    """Copies of single examples, so that keeping one does not keep its whole batch alive."""
    leaves, spec = tree_flatten(batch)
    for i in which:
        yield [leaf[i].clone() if _has_examples(leaf) else Same(leaf) for leaf in leaves], spec


def stacked(many: Sequence[Example], size: int) -> Iterator[Any]:
    """Batches of at most ``size`` examples, in the order of ``many``; another shape or structure begins a new one."""
    start = 0
    for stop in range(1, len(many) + 1):
        if stop == len(many) or stop - start == size or not _alike(many[start], many[stop]):
            columns = zip(*(row for row, _ in many[start:stop]), strict=True)
            leaves = [c[0].value if isinstance(c[0], Same) else torch.stack(c) for c in columns]
            yield tree_unflatten(leaves, many[start][1])
            start = stop


def _alike(a: Example, b: Example) -> bool:
    if a[1] != b[1]:
        return False
    for x, y in zip(a[0], b[0], strict=True):
        if isinstance(x, Same) or isinstance(y, Same):
            if not (isinstance(x, Same) and isinstance(y, Same)) or not (x.value is y.value or x.value == y.value):
                return False
        elif x.shape != y.shape or x.dtype != y.dtype:
            return False
    return True


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


def subsample(batches: Iterable[Any], samples: int | None, seed: int) -> Iterator[Any]:
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


def _smallest_keys(counted: Counted, samples: int, seed: int) -> list[Example]:
    """The examples with the ``samples`` smallest keys, in the order of their positions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(0, dtype=torch.float64)
    positions = torch.empty(0, dtype=torch.int64)
    slots: dict[int, Example] = {}
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
        slots.update(zip(new, split_examples(batch, [p - (counted.total - size) for p in new]), strict=True))
    return [slots[p] for p in sorted(slots)]
