"""Sums over examples of a value and, for its standard error, of its square."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from clbench.params import Params

LARGE = 2**14
"""Number of entries from which adding one gradient at a time is faster than a sum over a stack: the total stays in the cache."""


class Sums(NamedTuple):
    """The sums of one tensor, which the methods change in place.

    Attributes:
        first: Sum over examples of a value per entry.
        second: Sum of the squares of these values, None if it is not needed.
    """

    first: Tensor
    second: Tensor | None

    def viewed(self, view: Callable[[Tensor], Tensor]) -> Sums:
        """Return the same sums as seen through ``view``."""
        return Sums(view(self.first), None if self.second is None else view(self.second))

    def merge(self, other: Sums) -> None:
        """Add the sums of other examples or columns."""
        self.first.add_(other.first)
        if self.second is not None and other.second is not None:
            self.second.add_(other.second)

    def add(self, values: Tensor) -> None:
        """Add values (n, K, *shape). The value of an example is their sum over K."""
        if self.second is None:
            self.first.add_(values.flatten(0, 1).sum(0))
            return
        values = values.sum(1).double()
        self.first.add_(values.sum(0))
        self.second.add_(values.square().sum(0))

    def add_gradients(self, gradients: Tensor, value: Callable[..., Tensor]) -> None:
        """Add ``value`` of the gradients (n, K, *shape), which are overwritten."""
        if self.second is None and self.first.numel() >= LARGE:
            for gradient in gradients.flatten(0, 1):
                add_value(self.first, gradient, value)
        else:
            self.add(value(gradients, out=gradients))

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """Add the values left[n, o] * right[n, i] for ``left`` (n, O) and ``right`` (n, I), by one matrix product."""
        left, right = left.to(self.first.dtype), right.to(self.first.dtype)
        self.first.addmm_(left.T, right)
        if self.second is not None:
            self.second.addmm_(left.square().T, right.square())

    def add_rows(self, index: Tensor, values: Tensor) -> None:
        """Add values (m, D) to the rows ``index`` (m,) of a table. Each pair of example and row must come once."""
        values = values.to(self.first.dtype)
        self.first.index_add_(0, index, values)
        if self.second is not None:
            self.second.index_add_(0, index, values.square())


def add_value(total: Tensor, g: Tensor, value: Callable[..., Tensor]) -> Tensor:
    """Add value(g) to ``total`` in place. Squares take one pass over the memory."""
    return total.addcmul_(g, g) if value is torch.square else total.add_(value(g))


class ExampleStatistics:
    """Running sums over examples of a value per parameter, in float32 or wider.

    If squares are summed too, both sums are in float64. A variance is the small difference of the two, and in float32
    a standard deviation below about a thousandth of the mean would be lost.

    Args:
        params: Parameters whose names, shapes and devices are used.
        second: Whether to sum the squares too.
    """

    def __init__(self, params: Mapping[str, Tensor], second: bool) -> None:
        self.dtypes = {name: torch.promote_types(p.dtype, torch.float32) for name, p in params.items()}

        def zeros() -> Params:
            return {
                name: torch.zeros(p.shape, dtype=torch.float64 if second else self.dtypes[name], device=p.device)
                for name, p in params.items()
            }

        self.drawn = 0
        self.examples: int | Tensor = 0
        self.first = zeros()
        self.second = zeros() if second else None

    def count(self, drawn: int, examples: int | Tensor) -> None:
        """Count the examples of a batch, and those of them that count."""
        self.drawn += drawn
        self.examples = self.examples + examples

    def of(self, name: str) -> Sums:
        """Return the sums of one parameter."""
        return Sums(self.first[name], None if self.second is None else self.second[name])

    def mean(self) -> Params:
        """Return the mean over the examples that count.

        Raises:
            ValueError: No example counts.
        """
        if not self.examples:
            raise ValueError(
                "no example has a target that counts: expected at least one target other than ignore_index"
            )
        return {name: (total / self.examples).to(self.dtypes[name]) for name, total in self.first.items()}

    def standard_error(self, total: int) -> Params:
        """Return the standard error of the mean of n examples drawn without replacement from ``total``.

        sqrt( s^2 / n * (1 - n / total) ), where s^2 is the sample variance (denominator n - 1) and the second factor is the
        finite-population correction (Cochran 1977, Sampling Techniques, eq. 2.19). If ``n == total``, the data is taken as a
        sample of the task and the correction is left out.

        Raises:
            ValueError: There are fewer than two examples.
        """
        assert self.second is not None
        n = int(self.examples)
        if n < 2:
            raise ValueError(f"a standard error needs at least 2 examples, got {n}. Raise samples")
        correction = 1.0 if self.drawn == total else 1.0 - self.drawn / total
        return {
            name: ((self.second[name] - first.square() / n).clamp_(min=0) / (n - 1) * correction / n)
            .sqrt_()
            .to(self.dtypes[name])
            for name, first in self.first.items()
        }
