"""Sums over examples of a value and, when its standard error is asked for, of its square."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clbench.params import Params


class ExampleStatistics:
    """Running sums over examples of a value per parameter; kept in float32 or wider whatever the parameters are.

    With squares both sums are taken in float64: a variance is the small difference of two of them, and in float32 nothing
    would be left of one below a thousandth of the mean.

    Args:
        params: the parameters, for names, shapes and devices.
        second: also keep the sum of squares.
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
        """Add values (n, K, *shape): an example's value is their sum over K."""
        if self.second is None:
            self.first[name] += values.flatten(0, 1).sum(0)
            return
        values = values.sum(1).double()
        self.first[name] += values.sum(0)
        self.second[name] += values.square().sum(0)

    def add_outer(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add values left[n, o] * right[n, i] without forming them: one matrix product, (n, O) and (n, I)."""
        total = _flat(self.first[name], left)
        left, right = left.to(total.dtype), right.to(total.dtype)
        total.addmm_(left.T, right)
        if self.second is not None:
            _flat(self.second[name], left).addmm_(left.square().T, right.square())

    def add_rows(self, name: str, index: Tensor, values: Tensor) -> None:
        """Add values (m, D) of single rows ``index`` (m,) of a table; each pair of example and row comes once."""
        values = values.to(self.first[name].dtype)
        self.first[name].index_add_(0, index, values)
        if self.second is not None:
            self.second[name].index_add_(0, index, values.square())

    def mean(self) -> Params:
        """Mean over the examples."""
        return {name: (total / self.examples).to(self.dtypes[name]) for name, total in self.first.items()}

    def standard_error(self, total: int) -> Params:
        """Standard error of the mean of n examples drawn without replacement from ``total``.

        sqrt( s^2 / n * (1 - n / total) ) with s^2 the sample variance (n - 1 in the denominator); the second factor is
        the finite-population correction (Cochran 1977, Sampling Techniques, eq. 2.19). When
        ``n == total`` the data is itself taken as a sample from the task, and the correction is left out.

        Raises:
            ValueError: fewer than two examples.
        """
        assert self.second is not None
        n = self.examples
        if n < 2:
            raise ValueError(f"a standard error needs at least 2 examples, there is {n}; raise samples")
        correction = 1.0 if n == total else 1.0 - n / total
        return {
            name: ((self.second[name] - first.square() / n).clamp_(min=0) / (n - 1) * correction / n)
            .sqrt_()
            .to(self.dtypes[name])
            for name, first in self.first.items()
        }


def _flat(total: Tensor, left: Tensor) -> Tensor:
    return total.view(left.shape[1], -1)
