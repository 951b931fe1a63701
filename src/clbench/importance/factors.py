"""Per-example gradients of a tensor that all examples share, stored as factors where they have some.

n is the number of examples, K the number of gradients of an example, and P the number of positions that use the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clbench.importance.example_statistics import Sums, add_value

SquareOrAbs = Callable[..., Tensor]
"""``torch.square`` or ``torch.abs``."""


class Factor(Protocol):
    """The gradients of n examples with respect to a shared tensor."""

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""

    def each(self) -> int:
        """Return the number of entries that ``dense`` needs for one example."""

    def dense(self, piece: slice) -> Tensor:
        """Return the gradients (m, K, *shape) of the examples in ``piece``."""

    def add_to(self, sums: Sums, value: SquareOrAbs, budget: int) -> None:
        """Add ``value`` of the gradients of all examples to ``sums`` in pieces of at most ``budget`` entries."""


class Dense(NamedTuple):
    """The gradients themselves, ``values`` (n, K, *shape)."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape[2:]

    def each(self) -> int:
        return self.values[0].numel()

    def dense(self, piece: slice) -> Tensor:
        return self.values[piece]

    def add_to(self, sums: Sums, value: SquareOrAbs, budget: int) -> None:
        if sums.second is not None:
            return sums.add(value(self.values))
        for column in self.values.unbind(1):  # one at a time stays in the cache
            sums.first.add_(value(column).sum(0))
        return None


class Outer(NamedTuple):
    """Sums of outer products: grad[n, k, group] = sum_p g[n, k, group, p] a[n, group, p]^T, reshaped to ``shape``.

    Attributes:
        g: Gradients at the outputs, (n, K, groups, P, O).
        a: Inputs, (n, groups, P, I).
        shape: Shape of the tensor, with groups * O * I entries in this order; of the transposed tensor if ``is_transposed``.
        is_transposed: Whether the tensor is (groups, I, O), as in a product of inputs with weights.
        unfold: Function that maps ``a`` in another shape (m, ...) to (m, groups, P, I), such as images to patches.
    """

    g: Tensor
    a: Tensor
    shape: torch.Size
    is_transposed: bool = False
    unfold: Callable[[Tensor], Tensor] | None = None

    def each(self) -> int:
        patches = 9 * self.a[0].numel() if self.unfold else 0  # those of a 3x3 kernel
        return self.g.shape[1] * self.shape.numel() + self.g[0].numel() + patches

    def products(self, piece: slice) -> Tensor:
        """Return the gradients as (m, K, groups, O, I)."""
        g, a = self.g[piece], self.a[piece]
        if self.unfold:
            a = self.unfold(a)
        n, k, groups, p, o = g.shape
        left = g.transpose(1, 2).transpose(3, 4).reshape(n * groups, k * o, p)
        w = torch.bmm(left, a.reshape(n * groups, p, -1))
        return w.view(n, groups, k, o, -1).transpose(1, 2)

    def dense(self, piece: slice) -> Tensor:
        w = self.products(piece)
        return (w.mT if self.is_transposed else w).reshape(*w.shape[:2], *self.shape)

    def transposed(self) -> Outer:
        """Return the gradients of the transposed tensor, a matrix."""
        return self._replace(shape=self.shape[::-1], is_transposed=not self.is_transposed)

    def add_to(self, sums: Sums, value: SquareOrAbs, budget: int) -> None:
        _, k, groups, p, o = self.g.shape
        flat = sums.viewed(lambda t: t.view(groups, -1, o).mT if self.is_transposed else t.view(groups, o, -1))
        if p == 1 and groups == 1 and self.unfold is None:
            left = value(self.g[:, 0, 0, 0])
            for column in range(1, k):
                add_value(left, self.g[:, column, 0, 0], value)
            flat.viewed(lambda t: t[0]).add_outer(left, value(self.a[:, 0, 0]))
            return
        for piece in pieces(len(self.g), self.each(), budget):
            flat.add_gradients(self.products(piece), value)


class Rows(NamedTuple):
    """Gradients of the rows of a table that the examples use.

    Attributes:
        rows: Their numbers, (n, P).
        values: Gradients at the positions, (n, K, P, *rest).
        shape: Shape of the table, (rows, *rest).
    """

    rows: Tensor
    values: Tensor
    shape: torch.Size

    def each(self) -> int:
        return self.values.shape[1] * self.shape.numel()

    def dense(self, piece: slice) -> Tensor:
        numbers, values = self.rows[piece], self.values[piece]
        n, k = values.shape[:2]
        out = values.new_zeros(n * k * self.shape[0], *self.shape[1:])
        offsets = torch.arange(n * k, device=numbers.device).view(n, k, 1) * self.shape[0]
        return out.index_add_(0, (offsets + numbers[:, None]).flatten(), values.flatten(0, 2)).view(n, k, *self.shape)

    def unique(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return each pair of example and row that occurs once: examples (m,), rows (m,), gradients (m, K, *rest)."""
        keys = torch.arange(len(self.rows), device=self.rows.device)[:, None] * self.shape[0] + self.rows
        unique, where = keys.flatten().unique(return_inverse=True)
        by_position = self.values.transpose(1, 2).flatten(0, 1)
        sums = by_position.new_zeros(len(unique), *by_position.shape[1:]).index_add_(0, where, by_position)
        return unique // self.shape[0], unique % self.shape[0], sums

    def add_to(self, sums: Sums, value: SquareOrAbs, budget: int) -> None:
        _, rows, gradients = self.unique()
        sums.add_rows(rows, value(gradients).sum(1))


def pieces(n: int, each: int, budget: int) -> Iterator[slice]:
    """Yield slices of ``n`` examples with at most ``budget`` entries, at least one example each."""
    size = max(1, budget // max(1, each))
    for start in range(0, n, size):
        yield slice(start, start + size)


class Table(NamedTuple):
    """The gradients of a table whose rows are both read and multiplied with, such as tied input and output embeddings.

    The value of the product alone is summed without a gradient per example. Then the few rows that an example reads are
    corrected: value(product + read) - value(product).

    Attributes:
        product: The gradients as a factor of a product.
        read: The gradients as a table.
    """

    product: Outer
    read: Rows

    @property
    def shape(self) -> torch.Size:
        return self.read.shape

    def each(self) -> int:
        return self.product.each() + self.read.each()

    def dense(self, piece: slice) -> Tensor:
        return self.product.dense(piece) + self.read.dense(piece)

    def add_to(self, sums: Sums, value: SquareOrAbs, budget: int) -> None:
        self.product.add_to(sums, value, budget)
        examples, rows, read = self.read.unique()
        _, _, _, p, o = self.product.g.shape
        for piece in pieces(len(rows), p * o, budget):
            product = self._rows_of_product(examples[piece], rows[piece])
            before = value(product).sum(1).to(sums.first.dtype)
            after = value(product + read[piece]).sum(1).to(sums.first.dtype)
            sums.first.index_add_(0, rows[piece], after - before)
            if sums.second is not None:
                sums.second.index_add_(0, rows[piece], after.square() - before.square())

    def _rows_of_product(self, examples: Tensor, rows: Tensor) -> Tensor:
        """Return the rows (m, K, D) of the gradients of the product for pairs of example and row, (m,) each."""
        g, a = self.product.g[:, :, 0], self.product.a[:, 0]  # (n, K, P, O), (n, P, I)
        if self.product.is_transposed:
            return torch.einsum("mp,mkpd->mkd", a[examples, :, rows], g[examples])
        return torch.einsum("mkp,mpd->mkd", g[examples, :, :, rows], a[examples])


def combined(factors: Sequence[Factor]) -> Factor | None:
    """Return the sum of the gradients of one tensor as one factor, None if it has none."""
    if len(factors) == 1:
        return factors[0]
    outer = [f for f in factors if isinstance(f, Outer) and f.unfold is None and f.g.shape[2] == 1]
    rows = [f for f in factors if isinstance(f, Rows)]
    if len(outer) + len(rows) < len(factors) or len({f.is_transposed for f in outer}) > 1:
        return None
    product = read = None
    if outer:
        g, a = torch.cat([f.g for f in outer], 3), torch.cat([f.a for f in outer], 2)
        product = outer[0]._replace(g=g, a=a)
    if rows:
        numbers, values = torch.cat([f.rows for f in rows], 1), torch.cat([f.values for f in rows], 2)
        read = rows[0]._replace(rows=numbers, values=values)
    if product is None or read is None:
        return product if read is None else read
    return Table(product, read)
