"""One operation of a forward pass in which a tensor shared by all examples meets the examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from clbench.importance.example_statistics import Sums
from clbench.importance.factors import SquareOrAbs, pieces
from clbench.importance.layout import Layout
from clbench.params import widen


class NoRule(Exception):
    """A rule does not cover this case of its operation."""


class Operation(NamedTuple):
    """One operation of a forward pass.

    Attributes:
        node: Its node in the autograd graph.
        argument: Number of the input that all examples share.
        shared: That input, as a parameter or as a place in the graph.
        shape: Its shape.
        layout: The place of the examples in the output.
        n: Number of examples.
    """

    node: Node
    argument: int
    shared: Tensor | GradientEdge
    shape: torch.Size
    layout: Layout
    n: int

    def saved(self, name: str) -> Any:
        """Return a value that the operation has saved, tensors without history and in float32 or wider.

        Complex numbers are conjugated, because all rules for them multiply gradients with the conjugates of the operands.

        Raises:
            NoRule: This version of torch does not save it.
        """
        try:
            value = getattr(self.node, f"_saved_{name}")
        except AttributeError as error:
            raise NoRule from error
        if isinstance(value, complex):
            return value.conjugate()
        return widen(value.detach().conj().resolve_conj()) if isinstance(value, Tensor) else value

    @property
    def is_complex(self) -> bool:
        """Whether the shared input contains complex numbers."""
        if isinstance(self.shared, Tensor):
            return self.shared.is_complex()
        dtype: torch.dtype = self.shared.node._input_metadata[self.shared.output_nr].dtype
        return dtype.is_complex

    def split(self, t: Tensor, dim: int | None = None) -> Tensor:
        """Return ``t`` with the examples as a new first dimension, see ``Layout.split``."""
        return self.layout.split(t, self.n, dim)

    def aligned(self, t: Tensor, dims: int) -> Tensor:
        """Return an operand that was broadcast against an output of ``dims`` dimensions as (n, 1, ...) or (1, 1, ...)."""
        t = t.reshape((1,) * (dims - t.dim()) + tuple(t.shape))
        has_examples = t.shape[self.layout.dim] == self.n * self.layout.repeats
        return (self.split(t) if has_examples else t[None])[:, None]


class Separate(NamedTuple):
    """Gradients by the operation's own backward pass, one example at a time, for operations without a rule.

    Attributes:
        op: The operation.
        g: Gradients at its output, (n, K, ...).
    """

    op: Operation
    g: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.op.shape

    def each(self) -> int:
        return self.g.shape[1] * self.op.shape.numel()

    def dense(self, piece: slice) -> Tensor:
        op, (output, *_), dim = self.op, self.op.node._input_metadata, self.op.layout.dim
        edge = GradientEdge(op.node, 0)
        gradients: list[Tensor] = []
        for i in range(self.op.n)[piece]:
            for column in self.g[i]:
                alone = torch.zeros(output.shape, dtype=output.dtype, device=output.device)
                alone.index_copy_(dim, op.layout.entries(op.n, i, column.device), column.to(output.dtype))
                gradients += torch.autograd.grad([edge], [op.shared], [alone], retain_graph=True)  # type: ignore[arg-type]
        return widen(torch.stack(gradients)).view(-1, self.g.shape[1], *op.shape)

    def add_to(self, sums: Sums, value: SquareOrAbs, budget: int) -> None:
        for piece in pieces(self.op.n, self.each(), budget):
            sums.add_gradients(self.dense(piece), value)
