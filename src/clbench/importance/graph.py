"""Reading the autograd graph: which parameters the outputs use, and how often."""

from __future__ import annotations

from collections import Counter

from torch import Tensor
from torch.autograd.graph import Node


def trace(outputs: Tensor) -> tuple[set[Node], Counter[int]]:
    """Every node behind ``outputs``, and for each leaf tensor (by ``id``) how many operations use it.

    A weight tied to another, used twice or used through a function of it shows as a count other than one, or as a
    count that no layer call accounts for.

    Raises:
        ValueError: the graph hides parameters inside a re-entrant checkpoint.
    """
    seen: set[Node] = set()
    uses: Counter[int] = Counter()
    stack = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "the module uses torch.utils.checkpoint with use_reentrant=True, which hides its parameters from "
                "autograd.grad; use use_reentrant=False"
            )
        for following, _ in node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                uses[id(leaf)] += 1
            else:
                stack.append(following)
    return seen, uses
