"""Operations on batches of any structure: count, slice, move and stack examples, and draw a subsample.

The subsample depends on a seed and the order of the examples, and not on the batch size.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._pytree import TreeSpec, tree_unflatten

from clbench.errors import expected


class Same(NamedTuple):
    """A leaf shared by all examples of a batch, such as the task index."""

    value: Any


Example = tuple[list[Any], TreeSpec]
"""One example of a batch: its leaves (tensors without the batch dimension) and the structure of the batch."""


def flatten(batch: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a batch and its structure. Mappings other than dict, such as a BatchEncoding, are structures too."""
    leaves, spec = _pytree.tree_flatten(batch)
    if unknown := {type(leaf) for leaf in leaves if isinstance(leaf, UserDict | dict)}:
        for kind in unknown:
            _pytree.register_pytree_node(
                kind,
                lambda mapping: (list(mapping.values()), list(mapping)),
                lambda values, names, kind=kind: kind(dict(zip(names, values, strict=True))),  # type: ignore[misc]
            )
        return flatten(batch)
    return leaves, spec


def tree_map(function: Callable[[Any], Any], batch: Any) -> Any:
    """Return the batch with ``function`` applied to each leaf."""
    leaves, spec = flatten(batch)
    return tree_unflatten([function(leaf) for leaf in leaves], spec)


def _has_examples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def count(batch: Any) -> int:
    """Return the number of examples of ``batch``, the first dimension of its tensors. Other leaves are ignored.

    Raises:
        ValueError: The batch has no tensor, or the first dimensions differ.
    """
    sizes = {leaf.shape[0] for leaf in flatten(batch)[0] if _has_examples(leaf)}
    if not sizes:
        raise ValueError(
            f"a batch of type {type(batch).__name__} has no tensor with a batch dimension. "
            "Yield a tensor, tuple, NamedTuple or dict of tensors"
        )
    if len(sizes) > 1:
        raise ValueError(
            f"the tensors of a batch have first dimensions {sorted(sizes)}, but dimension 0 must be the examples. "
            "Put values that all examples share in 0-dimensional tensors or plain numbers"
        )
    return int(sizes.pop())


def shapes(batch: Any) -> tuple[Any, ...]:
    """Return the shape of one example of each tensor of ``batch``, which two batches of one kind share."""
    return tuple(leaf.shape[1:] for leaf in flatten(batch)[0] if _has_examples(leaf))


def take(batch: Any, index: slice | Tensor) -> Any:
    """Return the batch with the examples ``index`` of every tensor. Other leaves are kept as they are."""
    return tree_map(lambda leaf: leaf[index] if _has_examples(leaf) else leaf, batch)


def merge_batches(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Yield consecutive batches of one kind merged until they have ``size`` examples. Larger batches are yielded unchanged.

    Batches that wait to be merged are copied, because a loader may reuse the memory of its last batch.
    """
    waiting: list[Any] = []
    examples = 0
    for batch in batches:
        if waiting and (count(batch) >= size or not _can_merge(waiting[-1], batch)):
            yield _concatenate(waiting)
            waiting, examples = [], 0
        examples += count(batch)
        is_small = examples < size
        copied = tree_map(lambda leaf: leaf.clone() if _has_examples(leaf) else leaf, batch) if is_small else batch
        waiting.append(copied)
        if not is_small:
            yield _concatenate(waiting)
            waiting, examples = [], 0
    if waiting:
        yield _concatenate(waiting)


def _can_merge(a: Any, b: Any) -> bool:
    """Return whether the batches have the same structure, examples of the same shape and equal plain values.

    Leaves of other types cannot be compared safely, so batches with such leaves are not merged.
    """
    (left, one), (right, other) = flatten(a), flatten(b)

    def same(x: Any, y: Any) -> bool:
        if _has_examples(x) and _has_examples(y):
            return bool(x.shape[1:] == y.shape[1:] and x.dtype == y.dtype and x.device == y.device)
        return type(x) is type(y) and (x is None or (isinstance(x, int | float | str) and x == y))

    return one == other and all(same(x, y) for x, y in zip(left, right, strict=True))


def _concatenate(many: list[Any]) -> Any:
    if len(many) == 1:
        return many[0]
    columns = zip(*(flatten(batch)[0] for batch in many), strict=True)
    leaves = [torch.cat(column) if _has_examples(column[0]) else column[0] for column in columns]
    return tree_unflatten(leaves, flatten(many[0])[1])


def move_to(batch: Any, device: torch.device) -> Any:
    """Return the batch on ``device``, without gradient history. Tensors made in inference mode are copied for autograd."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().to(device, non_blocking=True)
        return leaf.clone() if leaf.is_inference() else leaf

    return tree_map(move, batch)


def split_examples(batch: Any, which: Sequence[int]) -> Iterator[Example]:
    """Yield copies of single examples, so that keeping an example does not keep its whole batch in memory."""
    leaves, spec = flatten(batch)
    for i in which:
        yield [leaf[i].clone() if _has_examples(leaf) else Same(leaf) for leaf in leaves], spec


def stack_examples(many: Sequence[Example], size: int) -> Iterator[Any]:
    """Yield batches of at most ``size`` examples, in the order of ``many``. A new shape or structure starts a new batch."""
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
    """Yields the batches of an iterable unchanged and counts their examples, so that a one-shot iterable is read once.

    Attributes:
        total: Number of examples so far.
        largest: Size of the largest batch so far.
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
            raise ValueError("the batches have 0 examples: expected at least 1. Is the loader empty or used up?")


def subsample(batches: Iterable[Any], samples: int | None, seed: int) -> Iterator[Any]:
    """Yield batches with exactly ``samples`` examples, drawn without replacement.

    Every position in the iteration order gets a random key from a generator seeded with ``seed``, and the examples with the
    ``samples`` smallest keys are kept (Fan, Muller and Rezucha 1962; Vitter 1985 calls this a random sort). The choice
    therefore depends on the seed and the position only, not on the batch size. It takes one pass and keeps at most ``samples``
    examples plus one batch in memory. The examples come in the order of their positions, in batches no larger than the
    original ones.

    Args:
        batches: Any iterable of batches.
        samples: Number of examples, None for all of them.
        seed: Random seed of the choice.

    Raises:
        ValueError: ``samples`` is below 1 or above the number of examples.

    Example:
        >>> [len(batch) for batch in subsample(torch.arange(100).split(10), 12, seed=0)]
        [10, 2]
    """
    if samples is None:
        yield from Counted(batches)
        return
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(expected("samples", samples, "an integer >= 1, or None for all examples"))
    counted = Counted(batches)
    kept = _smallest_keys(counted, samples, seed)
    if counted.total < samples:
        raise ValueError(
            f"samples={samples}: expected at most {counted.total}, the number of examples. "
            f"Use samples={counted.total}, or None for all"
        )
    yield from stack_examples(kept, counted.largest)


def _smallest_keys(counted: Counted, samples: int, seed: int) -> list[Example]:
    """Return the examples with the ``samples`` smallest keys, in the order of their positions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(0, dtype=torch.float64)
    positions = torch.empty(0, dtype=torch.int64)
    slots: dict[int, Example] = {}
    for batch in counted:
        size = count(batch)
        new_keys = torch.rand(size, generator=generator, dtype=torch.float64)
        keys = torch.cat([keys, new_keys])
        positions = torch.cat([positions, torch.arange(counted.total - size, counted.total)])
        if len(keys) > samples:
            best = keys.topk(samples, largest=False, sorted=False).indices.sort().values
            keys, positions = keys[best], positions[best]
        kept_positions = set(positions.tolist())
        for dropped in slots.keys() - kept_positions:
            del slots[dropped]
        new = sorted(kept_positions - slots.keys())
        slots.update(zip(new, split_examples(batch, [p - (counted.total - size) for p in new]), strict=True))
    return [slots[p] for p in sorted(slots)]
