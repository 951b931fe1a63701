"""Rows of a batch: how a batch of any structure is counted, sliced, moved and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten


class Same(NamedTuple):
    """A leaf that all rows of a batch share, such as the index of the task."""

    value: Any


Row = tuple[list[Any], TreeSpec]
"""One example taken out of its batch: the leaves (tensors without the batch dimension) and the structure they had."""


def _is_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def count(batch: Any) -> int:
    """Number of examples: the first dimension of the tensors in ``batch``; other leaves do not count.

    Raises:
        ValueError: there is no tensor in the batch, or the first dimensions differ.
    """
    sizes = {leaf.shape[0] for leaf in tree_flatten(batch)[0] if _is_rows(leaf)}
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
    return tuple(leaf.shape[1:] for leaf in tree_flatten(batch)[0] if _is_rows(leaf))


def take(batch: Any, index: slice | Tensor) -> Any:
    """The rows ``index`` of every tensor; leaves that are no rows pass through."""
    return tree_map(lambda leaf: leaf[index] if _is_rows(leaf) else leaf, batch)


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
        held.append(tree_map(lambda leaf: leaf.clone() if _is_rows(leaf) else leaf, batch) if waits else batch)
        if not waits:
            yield _joined(held)
            held, examples = [], 0
    if held:
        yield _joined(held)


def _joins(a: Any, b: Any) -> bool:
    """Same structure, rows of the same shape, and equal plain values; what cannot be compared safely does not join."""
    (left, one), (right, other) = tree_flatten(a), tree_flatten(b)

    def same(x: Any, y: Any) -> bool:
        if _is_rows(x) and _is_rows(y):
            return bool(x.shape[1:] == y.shape[1:] and x.dtype == y.dtype and x.device == y.device)
        return type(x) is type(y) and (x is None or (isinstance(x, int | float | str) and x == y))

    return one == other and all(same(x, y) for x, y in zip(left, right, strict=True))


def _joined(many: list[Any]) -> Any:
    if len(many) == 1:
        return many[0]
    columns = zip(*(tree_flatten(batch)[0] for batch in many), strict=True)
    leaves = [torch.cat(column) if _is_rows(column[0]) else column[0] for column in columns]
    return tree_unflatten(leaves, tree_flatten(many[0])[1])


def moved(batch: Any, device: torch.device) -> Any:
    """The batch on ``device``, without gradient history, usable by autograd although made in inference mode."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().to(device, non_blocking=True)
        return leaf.clone() if leaf.is_inference() else leaf

    return tree_map(move, batch)


def rows(batch: Any, which: Sequence[int]) -> Iterator[Row]:
    """Copies of single rows, so that keeping one does not keep its whole batch alive."""
    leaves, spec = tree_flatten(batch)
    for i in which:
        yield [leaf[i].clone() if _is_rows(leaf) else Same(leaf) for leaf in leaves], spec


def stacked(many: Sequence[Row], size: int) -> Iterator[Any]:
    """Batches of at most ``size`` rows, in the order of ``many``; a row of another shape or structure begins a new one."""
    start = 0
    for stop in range(1, len(many) + 1):
        if stop == len(many) or stop - start == size or not _alike(many[start], many[stop]):
            columns = zip(*(row for row, _ in many[start:stop]), strict=True)
            leaves = [c[0].value if isinstance(c[0], Same) else torch.stack(c) for c in columns]
            yield tree_unflatten(leaves, many[start][1])
            start = stop


def _alike(a: Row, b: Row) -> bool:
    if a[1] != b[1]:
        return False
    for x, y in zip(a[0], b[0], strict=True):
        if isinstance(x, Same) or isinstance(y, Same):
            if not (isinstance(x, Same) and isinstance(y, Same)) or not (x.value is y.value or x.value == y.value):
                return False
        elif x.shape != y.shape or x.dtype != y.dtype:
            return False
    return True
