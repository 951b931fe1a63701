"""The autograd graph behind the outputs of a module.

A tensor in the graph is *shared* if it is made of parameters alone, such as a transposed weight or a table of positions. Other
tensors have one part per example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Shared = str | tuple[int, int]
"""A shared tensor: the name of a parameter, or (node, output number)."""


MOVES: dict[str, Callable[[Node, Tensor], Tensor]] = {
    "TBackward0": lambda node, t: t.mT,
    "TransposeBackward0": lambda node, t: t.transpose(*(signed(getattr(node, f"_saved_dim{i}")) for i in (0, 1))),
    "PermuteBackward0": lambda node, t: t.permute(_inverse([signed(d) % t.dim() for d in node._saved_dims])),  # type: ignore[attr-defined]
    **dict.fromkeys(
        (
            "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward0",
            "SqueezeBackward1", "SqueezeBackward2", "CloneBackward0", "ToCopyBackward0", "AliasBackward0",
        ),
        lambda node, t: t,
    ),
}  # fmt: skip
"""Operations that only move the entries of a tensor, with the move back, up to a change of shape."""


def signed(dim: int) -> int:
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
        lengths: Number of entries of each parameter to measure that the graph contains.
    """

    def __init__(self, outputs: Tensor, names: Mapping[int, str]) -> None:
        self.nodes = list(_in_order(outputs.grad_fn))
        self.lengths: dict[Shared, int] = {}
        number = {node: i for i, node in enumerate(self.nodes)}

        def described(node: Node | None, output: int) -> Shared | None:
            if node is None:
                return None
            leaf = getattr(node, "variable", None)
            if leaf is None:
                return number[node], output
            if (name := names.get(id(leaf))) is not None:
                self.lengths[name] = leaf.numel()
            return name

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
