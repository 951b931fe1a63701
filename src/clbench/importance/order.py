"""The order of the examples in the rows of an operation.

It is found from the gradient of one example, which is zero in the rows of all others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clbench.importance.graph import Graph, Irregular
from clbench.importance.layout import Layout
from clbench.importance.structure import Structure


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
