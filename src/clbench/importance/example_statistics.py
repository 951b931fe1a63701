"""Sums over examples of a value and, for its standard error, of its square."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clbench.params import Params


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

        self.examples = 0
        self.first = zeros()
        self.second = zeros() if second else None

    def add(self, name: str, values: Tensor) -> None:
        """Add values (n, K, *shape). The value of an example is their sum over K."""
        if self.second is None:
            self.first[name] += values.flatten(0, 1).sum(0)
            return
        values = values.sum(1).double()
        self.first[name] += values.sum(0)
        self.second[name] += values.square().sum(0)

    def add_outer(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add the values left[n, o] * right[n, i] for ``left`` (n, O) and ``right`` (n, I), by one matrix product."""
        total = _flat(self.first[name], left)
        left, right = left.to(total.dtype), right.to(total.dtype)
        total.addmm_(left.T, right)
        if self.second is not None:
            _flat(self.second[name], left).addmm_(left.square().T, right.square())

    def add_rows(self, name: str, index: Tensor, values: Tensor) -> None:
        """Add values (m, D) to the rows ``index`` (m,) of a table. Each pair of example and row must come once."""
        values = values.to(self.first[name].dtype)
        self.first[name].index_add_(0, index, values)
        if self.second is not None:
            self.second[name].index_add_(0, index, values.square())

    def mean(self) -> Params:
        """Return the mean over the examples."""
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
        n = self.examples
        if n < 2:
            raise ValueError(f"a standard error needs at least 2 examples, got {n}. Raise samples")
        correction = 1.0 if n == total else 1.0 - n / total
        return {
            name: ((self.second[name] - first.square() / n).clamp_(min=0) / (n - 1) * correction / n)
            .sqrt_()
            .to(self.dtypes[name])
            for name, first in self.first.items()
        }


def _flat(total: Tensor, left: Tensor) -> Tensor:
    return total.view(left.shape[1], -1)
