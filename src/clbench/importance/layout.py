"""The place of the examples in a tensor of the graph.

Which dimension contains the examples is found by comparing the graphs of two batches of different size: it is the dimension
whose size grows. A dimension of size n * k, such as the rows (examples and positions) of a linear layer, contains each example
k times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clbench.importance.graph import Graph, Irregular

VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


class Layout(NamedTuple):
    """The place of the examples in a tensor.

    Attributes:
        dim: The dimension that contains them.
        repeats: Number of entries of each example along ``dim``.
        outer: How often the examples follow each other along ``dim``. 1 means that the entries of an example are all together,
            ``repeats`` that those of all examples alternate. None is not known yet.
    """

    dim: int
    repeats: int
    outer: int | None

    def sizes(self, n: int) -> tuple[int, int, int]:
        """Return the sizes of ``dim`` split in three, of which the second one is the ``n`` examples."""
        assert self.outer is not None
        return self.outer, n, self.repeats // self.outer

    def split(self, t: Tensor, n: int, dim: int | None = None) -> Tensor:
        """Return ``t`` with a new first dimension for the ``n`` examples. The old one keeps the entries of one example."""
        d = self.dim if dim is None else dim
        if d == 0 and self.outer == 1:  # nearly always
            return t.view(n, self.repeats, *t.shape[1:])
        split: Tensor = t.unflatten(d, self.sizes(n)).movedim(d + 1, 0).flatten(d + 1, d + 2)
        return split

    def entries(self, n: int, example: int, device: torch.device) -> Tensor:
        """Return the numbers of the entries of an example along ``dim``."""
        return torch.arange(n * self.repeats, device=device).view(self.sizes(n))[:, example].flatten()


def layout_of(small: Sequence[int], large: Sequence[int], few: int, n: int) -> Layout | None:
    """Return the place of the examples in a tensor of these two sizes, None if the sizes are equal."""
    grown = [d for d, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
    if len(small) == len(large) and not grown:
        return None
    if len(small) != len(large) or len(grown) > 1:
        raise Irregular(f"the sizes {tuple(small)} and {tuple(large)} for {few} and {n} examples")
    a, b = small[grown[0]], large[grown[0]]
    repeats, rest = divmod(b - a, n - few)
    if rest or a != few * repeats:
        raise Irregular(f"the sizes {tuple(small)} and {tuple(large)} for {few} and {n} examples")
    return Layout(grown[0], repeats, 1 if repeats == 1 else None)


def _stride(layout: Layout, shape: Sequence[int]) -> int | None:
    """Return the distance of two examples in the flattened tensor, None if it is not known."""
    return None if layout.outer is None else math.prod(shape[layout.dim + 1 :]) * (layout.repeats // layout.outer)


def _with_order_of(layout: Layout, shape: Sequence[int], stride: int | None) -> Layout:
    """Return ``layout`` with the order of the rows that two examples at this distance have."""
    if layout.outer is not None or not stride:
        return layout
    inner, rest = divmod(stride, max(1, math.prod(shape[layout.dim + 1 :])))
    return layout if rest or not inner or layout.repeats % inner else layout._replace(outer=layout.repeats // inner)


def order_by_views(graph: Graph, layouts: dict[tuple[int, int], Layout | None]) -> None:
    """Find the order of rows before and after a change of shape, which keeps the order of the entries."""
    for i, (name, inputs) in enumerate(graph.structure):
        t, out = next((t for t in inputs if isinstance(t, tuple)), None), (i, 0)
        if name not in VIEWS or t is None or (before := layouts[t]) is None or (after := layouts.get(out)) is None:
            continue
        shapes = graph.shape(*t), graph.shape(*out)
        layouts[t] = _with_order_of(before, shapes[0], _stride(after, shapes[1]))
        layouts[out] = _with_order_of(after, shapes[1], _stride(before, shapes[0]))
