"""The autograd graph behind the outputs of a module: where parameters meet the examples.

A tensor in the graph is *shared* if it is made of parameters alone, such as a transposed weight or a table of positions. Other
tensors have one part per example. An operation that turns a shared tensor into a tensor with examples is a *meeting*. The
gradient of one example with respect to the shared tensor follows from the gradient at the output of that operation, which
contains the examples one after another.

Which dimension contains the examples is found by comparing the graphs of two batches of different size: it is the dimension
whose size grows. A dimension of size n * k, such as the rows (examples and positions) of a linear layer, contains each example
k times. Their order is found from the gradient of one example, which is zero in the rows of all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Shared = str | tuple[int, int]
"""A shared tensor: the name of a parameter, or (node, output number)."""

MOVES: dict[str, Callable[[Node, Tensor], Tensor]] = {
    "TBackward0": lambda node, t: t.mT,
    "TransposeBackward0": lambda node, t: t.transpose(*(_signed(getattr(node, f"_saved_dim{i}")) for i in (0, 1))),
    "PermuteBackward0": lambda node, t: t.permute(_inverse([_signed(d) % t.dim() for d in node._saved_dims])),  # type: ignore[attr-defined]
    **dict.fromkeys(
        (
            "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward0",
            "SqueezeBackward1", "SqueezeBackward2", "CloneBackward0", "ToCopyBackward0", "AliasBackward0",
        ),
        lambda node, t: t,
    ),
}  # fmt: skip
"""Operations that only move the entries of a tensor, with the move back, up to a change of shape."""

VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


REORDER = ("Index", "Gather", "Sort", "Scatter", "MaskedSelect", "Topk", "Unique")
"""Beginnings of the names of operations that may place examples in an order that depends on their values."""


def _signed(dim: int) -> int:
    """Return a dimension that the graph stores without its sign."""
    return dim - 2**64 if dim >= 2**63 else dim


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


class Irregular(Exception):
    """The examples of a batch cannot be located in the graph. The text is the reason."""


class Graph:
    """The nodes behind ``outputs``, numbered in a fixed order in which the inputs of a node come before it.

    Args:
        outputs: Outputs of a module.
        names: Name of each parameter to measure, by its ``id``.

    Attributes:
        nodes: The nodes.
        structure: Name and inputs of each node. An input is the name of a parameter, (node, output number), or None for an
            input without gradient. Two batches that run the same operations have equal structures.
    """

    def __init__(self, outputs: Tensor, names: Mapping[int, str]) -> None:
        self.nodes = list(_in_order(outputs.grad_fn))
        number = {node: i for i, node in enumerate(self.nodes)}

        def described(node: Node | None, output: int) -> Shared | None:
            if node is None:
                return None
            leaf = getattr(node, "variable", None)
            return (number[node], output) if leaf is None else names.get(id(leaf))

        self.structure = tuple(
            (node.name(), tuple(described(*following) for following in node.next_functions)) for node in self.nodes
        )

    def shape(self, node: int, output: int) -> torch.Size:
        """Return the shape of an output of a node."""
        return torch.Size(self.nodes[node]._input_metadata[output].shape)

    def is_complex(self, node: int) -> bool:
        """Return whether the first output of a node contains complex numbers."""
        dtype: torch.dtype = self.nodes[node]._input_metadata[0].dtype
        return dtype.is_complex

    def edge(self, tensor: tuple[int, int]) -> GradientEdge:
        """Return the place of a tensor in the graph, for ``torch.autograd.grad``."""
        return GradientEdge(self.nodes[tensor[0]], tensor[1])


def _in_order(root: Node | None) -> Iterator[Node]:
    """Yield the nodes behind ``root``, inputs first, without those that only receive the gradients of leaves.

    Raises:
        ValueError: The graph hides parameters inside a re-entrant checkpoint.
    """
    stack: list[tuple[Node | None, bool]] = [(root, False)]
    seen: set[Node] = set()
    while stack:
        node, is_done = stack.pop()
        if node is None or (node in seen and not is_done) or getattr(node, "variable", None) is not None:
            continue
        if is_done:
            yield node
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "the module uses torch.utils.checkpoint with use_reentrant=True, which hides its parameters from "
                "autograd.grad. Use use_reentrant=False"
            )
        seen.add(node)
        stack.append((node, True))
        stack.extend((following, False) for following, _ in reversed(node.next_functions))


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
        reordering: The operations that may reorder the examples of their first input, its layout and its number of dimensions.
    """

    operations: tuple[tuple[str, tuple[Shared | None, ...]], ...]
    meetings: dict[Shared, list[Meeting]]
    sources: dict[str, list[Shared]]
    moved: dict[Shared, tuple[int, ...]]
    sizes: dict[int, torch.Size]
    reordering: dict[int, tuple[Layout, int]]

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

    @cached_property
    def may_reorder(self) -> bool:
        """Whether the order of the examples may depend on their values."""
        return any(name.startswith(REORDER) for name, _ in self.operations)


def _keeps_order(node: Node, layout: Layout, dims: int, n: int) -> bool:
    """Return whether an operation leaves the examples of its first input of ``dims`` dimensions in their order."""
    index, indices, dim = (getattr(node, f"_saved_{name}", None) for name in ("index", "indices", "dim"))
    if isinstance(indices, tuple | list):  # one tensor per dimension
        index = indices[layout.dim] if layout.dim < len(indices) else None
        if index is None:
            return True
    elif dim is None or _signed(dim) % dims != layout.dim:
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
    layouts = {t: _layout(small.shape(*t), large.shape(*t), few, n) for t in sorted(used)}
    _order_by_views(large, layouts)
    structure = Structure(large.structure, {}, {}, {}, {}, _reordering(large, layouts))
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
    return structure


def _reordering(graph: Graph, layouts: Mapping[tuple[int, int], Layout | None]) -> dict[int, tuple[Layout, int]]:
    """Return the operations that may reorder the examples of their first input, its layout and its number of dimensions."""
    found = {}
    for i, (name, inputs) in enumerate(graph.structure):
        first = inputs[0] if inputs else None
        if name.startswith(REORDER) and isinstance(first, tuple) and (layout := layouts[first]) is not None:
            found[i] = layout, len(graph.shape(*first))
    return found


def _layout(small: Sequence[int], large: Sequence[int], few: int, n: int) -> Layout | None:
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


def _order_by_views(graph: Graph, layouts: dict[tuple[int, int], Layout | None]) -> None:
    """Find the order of rows before and after a change of shape, which keeps the order of the entries."""
    for i, (name, inputs) in enumerate(graph.structure):
        t, out = next((t for t in inputs if isinstance(t, tuple)), None), (i, 0)
        if name not in VIEWS or t is None or (before := layouts[t]) is None or (after := layouts.get(out)) is None:
            continue
        shapes = graph.shape(*t), graph.shape(*out)
        layouts[t] = _with_order_of(before, shapes[0], _stride(after, shapes[1]))
        layouts[out] = _with_order_of(after, shapes[1], _stride(before, shapes[0]))


def order_rows(structure: Structure, z: Tensor, graph: Graph) -> Structure:
    """Return the structure with the order of the rows of each meeting, found from the gradients of single examples.

    Raises:
        Irregular: The gradient of an example is not where any order places it, or it fits several.
    """
    n, layouts = len(z), structure.nodes
    possible = {
        node: [layout] if layout.outer is not None else [layout._replace(outer=k) for k in _divisors(layout.repeats)]
        for node, layout in layouts.items()
    }
    for example in dict.fromkeys((1, *range(n - 1, -1, -1))):
        todo = [node for node in possible if example == 1 or layouts[node].outer is None]
        for node, g in _gradients_of(example, z, graph, todo):
            possible[node] = [layout for layout in possible[node] if _is_within(g, layout, n, example)]
            if not possible[node]:
                raise Irregular(f"{structure.operations[node][0]} mixes the examples")
    for node, fitting in possible.items():
        if len(fitting) > 1:
            raise Irregular(f"the order of the rows of {structure.operations[node][0]} is not known")
    meetings = {
        tensor: [m._replace(layout=possible[m.node][0]) for m in meetings]
        for tensor, meetings in structure.meetings.items()
    }
    return replace(structure, meetings=meetings)


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]


def is_ordered(structure: Structure, z: Tensor, graph: Graph) -> bool:
    """Return whether the gradients of all examples are where the structure places them.

    The gradients at the outputs are scaled by a power of two per example. All gradients of the example must scale with it.
    """
    n, layouts = len(z), structure.nodes
    powers = torch.randint(8, (n,), generator=torch.Generator().manual_seed(0)).to(z.device)
    v = _direction(z).expand_as(z)
    edges = [graph.edge((node, 0)) for node in layouts]
    once, scaled = (
        torch.autograd.grad(z, edges, v * s.to(z).view(-1, *(1,) * (z.dim() - 1)), retain_graph=True, allow_unused=True)
        for s in (torch.ones_like(powers), 2**powers)
    )
    for layout, a, b in zip(layouts.values(), once, scaled, strict=True):
        if a is None or b is None:
            continue
        a, b = (layout.split(g, n).flatten(1) for g in (a, b))
        a = a * (2**powers).to(z.device)[:, None]
        size = a.abs().amax(1)
        if ((a - b).abs().amax(1) > 0.1 * size + torch.finfo(z.dtype).eps * size.amax()).any():
            return False
    return True


def _direction(z: Tensor) -> Tensor:
    """Return an arbitrary gradient at the outputs of one example."""
    return torch.linspace(1.0, 2.0, z[0].numel(), dtype=torch.float64).cos().view(z.shape[1:]).to(z)


def _gradients_of(example: int, z: Tensor, graph: Graph, nodes: list[int]) -> list[tuple[int, Tensor]]:
    """Return the gradients of one example's outputs, in an arbitrary direction, at the outputs of nodes that they reach."""
    if not nodes:
        return []
    v = torch.zeros_like(z)
    v[example] = _direction(z)
    edges = [graph.edge((node, 0)) for node in nodes]
    gradients = torch.autograd.grad(z, edges, v, retain_graph=True, allow_unused=True)
    return [(node, g) for node, g in zip(nodes, gradients, strict=True) if g is not None]


def _is_within(g: Tensor, layout: Layout, n: int, example: int) -> bool:
    """Return whether ``g`` is zero outside the entries of ``example``."""
    nonzero = g.movedim(layout.dim, 0).reshape(g.shape[layout.dim], -1).ne(0).any(1)
    nonzero[layout.entries(n, example, g.device)] = False
    return not bool(nonzero.any())
