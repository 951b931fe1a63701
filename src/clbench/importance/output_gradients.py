"""What is sent backward through a module: for each example, the columns v for which the values of J^T v add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from clbench.importance.outputs import Forward
from clbench.importance.positions import mask_of_outputs


class Columns(NamedTuple):
    """The gradients at the outputs of one batch.

    Attributes:
        number: Number K of columns.
        examples: Number of examples that count, those with at least one position that counts.
        each: The K columns, each with the shape of the outputs.
        counts: Which examples count, (n,) bool. None counts all of them.
    """

    number: int
    examples: int | Tensor
    each: Iterator[Tensor]
    counts: Tensor | None = None


OutputGradients = Callable[[Forward], Columns]
"""Function that returns the gradients at the outputs of a forward pass."""


def one_column(gradient: Callable[[Tensor], Tensor]) -> OutputGradients:
    """Return the output gradients of a function of the outputs z of each example, from its gradient at z."""

    def columns(forward: Forward) -> Columns:
        v, examples = gradient(forward.z), len(forward.z)
        if forward.mask is None:
            return Columns(1, examples, iter([v]))
        mask = mask_of_outputs(forward.mask.to(v.device), tuple(v.shape))
        counts = mask.flatten(1).any(1)
        return Columns(1, counts.sum(), iter([v.masked_fill(~mask, 0.0)]), counts)

    return columns
