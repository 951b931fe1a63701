"""Where parameters meet the examples in the graphs of all batches of one kind.

An operation that turns a shared tensor into a tensor with examples is a *meeting*. The gradient of one example with respect to
the shared tensor follows from the gradient at the output of that operation, which contains the examples one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch.autograd.graph import Node

from clbench.importance.graph import MOVES, Graph, Irregular, Shared, signed
from clbench.importance.layout import Layout, layout_of, order_by_views

REORDER = (
    "Index", "Gather", "Sort", "Scatter", "MaskedSelect", "MaskedScatter", "Topk", "Take", "Put", "EmbeddingBackward", "Roll",
)  # fmt: skip
"""Beginnings of the names of operations that may place examples in an order that depends on their values."""

SUMMED = {
    "MmBackward0": ((0, 1), (1, 0)),
    "MvBackward0": ((0, 1), (1, 0)),
    "BmmBackward0": ((0, 2), (1, 1)),
    "AddmmBackward0": ((1, 1), (2, 0)),
    "BaddbmmBackward0": ((1, 2), (2, 1)),
}
"""The dimensions over which products of matrices sum, each as (input, dimension)."""

FIRST_FACTOR = {"MmBackward0": 0, "AddmmBackward0": 1}
"""Products of two matrices, and the number of the input that is the first of them."""


class Meeting(NamedTuple):
    """An operation in which a shared tensor meets the examples.

    Attributes:
        node: The operation.
        argument: Number of the input of the operation that is shared.
        layout: The place of the examples in its output.
    """

    node: int
    argument: int
    layout: Layout


@dataclass(frozen=True)
class Structure:
    """What the graphs of two batches of a module show about all batches of that kind.

    Attributes:
        operations: ``Graph.structure``.
        meetings: The meetings of each shared tensor.
        sources: The shared tensors that depend on each parameter and meet examples.
        moved: For each shared tensor that only moves the entries of one parameter, the nodes that do so, in order.
        sizes: Shape of the output of every operation in a meeting for one batch.
        reordering: The operations that may reorder the examples of an input, its layout and its number of dimensions.
        separable: The operations in a meeting of which each entry of a parameter's gradient contains one of the gradients at the
            operation, times a number that is the same for all columns.
    """

    operations: tuple[tuple[str, tuple[Shared | None, ...]], ...]
    meetings: dict[Shared, list[Meeting]]
    sources: dict[str, list[Shared]]
    moved: dict[Shared, tuple[int, ...]]
    sizes: dict[int, torch.Size]
    reordering: dict[int, tuple[Layout, int]]
    separable: set[int]

    def fits(self, graph: Graph, n: int) -> bool:
        """Return whether ``graph`` of ``n`` examples has this structure."""
        return (
            graph.structure == self.operations
            and all(
                _resized(self.sizes[node], layout, n) == graph.shape(node, 0) for node, layout in self.nodes.items()
            )
            and all(_keeps_order(graph.nodes[i], *where, n) for i, where in self.reordering.items())
        )

    @cached_property
    def nodes(self) -> dict[int, Layout]:
        """The operations at which gradients are needed, with the place of the examples in their outputs."""
        return {m.node: m.layout for meetings in self.meetings.values() for m in meetings}


def _keeps_order(node: Node, layout: Layout, dims: int, n: int) -> bool:
    """Return whether an operation leaves the examples of an input of ``dims`` dimensions in their order."""
    index, indices, dim = (getattr(node, f"_saved_{name}", None) for name in ("index", "indices", "dim"))
    if node.name() == "RollBackward0":
        rolled = [signed(d) % dims for d in node._saved_dims]  # type: ignore[attr-defined]
        return bool(rolled) and layout.dim not in rolled
    if isinstance(indices, tuple | list):  # one tensor per dimension
        index = indices[layout.dim] if layout.dim < len(indices) else None
        if index is None:
            return True
    elif dim is None or signed(dim) % dims != layout.dim:
        return dim is not None
    if index is None or index.dtype == torch.bool or index.numel() % n or layout.outer is None:
        return False
    example = index.flatten() % (n * layout.repeats) // (layout.repeats // layout.outer) % n
    order = torch.arange(n, device=index.device)
    return bool((example.view(n, -1) == order[:, None]).all() or (example.view(-1, n) == order).all())


def _resized(size: torch.Size, layout: Layout, n: int) -> torch.Size:
    return torch.Size((*size[: layout.dim], n * layout.repeats, *size[layout.dim + 1 :]))


def compare(small: Graph, large: Graph, few: int, n: int) -> Structure:
    """Return the structure that the graphs of ``few`` and of ``n`` examples share, without the order of most rows.

    Raises:
        Irregular: The graphs differ, or an operation mixes examples in a way that hides them.
    """
    if small.structure != large.structure:
        raise Irregular("the operations depend on the number of examples")
    used = {tensor for _, inputs in large.structure for tensor in inputs if isinstance(tensor, tuple)}
    used.add((len(large.nodes) - 1, 0))
    layouts = {t: layout_of(small.shape(*t), large.shape(*t), few, n) for t in sorted(used)}
    _check_products(large, layouts)
    order_by_views(large, layouts)
    structure = Structure(large.structure, {}, {}, {}, {}, _reordering(large, layouts), set())
    made_of: dict[Shared, set[str]] = {}  # the parameters of a shared tensor
    for i, (name, inputs) in enumerate(large.structure):
        outputs = [t for t in layouts if t[0] == i]
        shared = [(j, t) for j, t in enumerate(inputs) if t is not None and (isinstance(t, str) or layouts[t] is None)]
        made_of |= {t: {t} for _, t in shared if isinstance(t, str)}
        structure.moved.update({t: () for _, t in shared if isinstance(t, str)})
        if any(layouts[t] for t in outputs):
            for j, tensor in shared:
                if len(outputs) > 1:
                    raise Irregular(f"{name} has several outputs")
                structure.meetings.setdefault(tensor, []).append(Meeting(i, j, layouts[outputs[0]]))  # type: ignore[arg-type]
                structure.sizes[i] = large.shape(i, 0)
        elif len(shared) < sum(t is not None for t in inputs):
            raise Irregular(f"{name} mixes the examples")
        else:
            made_of |= dict.fromkeys(outputs, set().union(*(made_of[t] for _, t in shared)))
            if name in MOVES and not large.is_complex(i) and (before := structure.moved.get(shared[0][1])) is not None:
                structure.moved.update(dict.fromkeys(outputs, (*before, i)))
    for tensor in structure.meetings:
        for parameter in sorted(made_of[tensor]):
            structure.sources.setdefault(parameter, []).append(tensor)
    structure.separable.update(structure.nodes.keys() - set(_mixing(structure, large)))
    return structure


def _mixing(structure: Structure, graph: Graph) -> Iterator[int]:
    """Yield the operations in a meeting that are not separable."""
    several = {t for tensors in structure.sources.values() if len(tensors) > 1 for t in tensors}
    for tensor, meetings in structure.meetings.items():
        for node, argument, layout in meetings:
            size, first = structure.sizes[node], FIRST_FACTOR.get(structure.operations[node][0])
            is_term = first == 1 and argument == 0 and graph.lengths.get(tensor) == size.numel() // size[layout.dim]
            is_product = first is not None and (argument, layout.dim) in ((first, 1), (first + 1, 0))
            is_alone = len(meetings) == 1 and tensor in structure.moved and tensor not in several
            if not (is_alone and layout.repeats == 1 and (is_term or is_product)):
                yield node


def _reordering(graph: Graph, layouts: Mapping[tuple[int, int], Layout | None]) -> dict[int, tuple[Layout, int]]:
    """Return the operations that may reorder the examples of an input, its layout and its number of dimensions."""
    found = {}
    for i, (name, inputs) in enumerate(graph.structure):
        for tensor in inputs:
            if name.startswith(REORDER) and isinstance(tensor, tuple) and (layout := layouts[tensor]) is not None:
                found[i] = layout, len(graph.shape(*tensor))
                break
    return found


def _check_products(graph: Graph, layouts: Mapping[tuple[int, int], Layout | None]) -> None:
    """Raise ``Irregular`` if a product of matrices sums over the examples."""
    for name, inputs in graph.structure:
        for number, dim in SUMMED.get(name, ()):
            tensor = inputs[number]
            if isinstance(tensor, tuple) and (layout := layouts[tensor]) is not None and layout.dim == dim:
                raise Irregular(f"{name} sums over the examples")
