"""The autograd graph of a forward pass: which parameters the outputs use, and the input of each layer with a closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from clbench.importance.layers import fits, form_of


def trace(outputs: Tensor) -> tuple[set[Node], Counter[int]]:
    """Return all nodes behind ``outputs`` and, by ``id`` of each leaf tensor, the number of operations that use it.

    A weight that is tied, used twice or used through a function of it has a count other than one, or a count that no layer call
    explains.

    Raises:
        ValueError: The graph hides parameters inside a re-entrant checkpoint.
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
                "autograd.grad. Use use_reentrant=False"
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


class Call(NamedTuple):
    """One call of a layer. The version counters show whether a tensor was changed in place afterwards."""

    layer: nn.Module
    input: Tensor
    input_version: int
    edge: GradientEdge
    output: Tensor
    output_version: int
    output_is_view: bool

    def is_unchanged(self) -> bool:
        """Return whether the input is still what the layer received.

        An output may be changed in place, unless it is a view: autograd then bypasses its edge.
        """
        changed = self.output_is_view and self.output._version != self.output_version
        return self.input._version == self.input_version and not changed


class Recorder:
    """Records the calls of layers that have a closed form and a trainable parameter. Active only inside ``run``."""

    def __init__(self) -> None:
        self.calls: list[Call] | None = None

    def run(self, forward: Callable[[], Any]) -> tuple[Any, list[Call]]:
        """Return the result of ``forward()`` and the layer calls it made, without those of a checkpoint's second forward pass."""
        calls: list[Call] = []
        self.calls = calls
        try:
            return forward(), calls
        finally:
            self.calls = None

    def hook(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the layers. It runs before the user's hooks, so that it gets the unchanged output of the layer."""
        if self.calls is None or not isinstance(output, Tensor) or not output.requires_grad:
            return
        a = (args[0] if args else kwargs["input"]).detach()
        self.calls.append(
            Call(layer, a, a._version, get_gradient_edge(output), output.detach(), output._version, output._is_view())
        )


@contextmanager
def recording(module: nn.Module) -> Iterator[Recorder]:
    """Yield a recorder whose hooks are on ``module``, and remove the hooks at the end."""
    recorder = Recorder()
    handles = [
        layer.register_forward_hook(recorder.hook, prepend=True, with_kwargs=True)
        for layer in module.modules()
        if form_of(layer) is not None and any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


class Plan(NamedTuple):
    """The method for each parameter. Parameters in neither list are not used by the outputs and have importance zero.

    Attributes:
        closed: Layer calls with a closed form, each with the local and full names of its parameters.
        general: Names of the parameters that need ``General``.
    """

    closed: list[tuple[Call, dict[str, str]]]
    general: list[str]


def plan(outputs: Tensor, calls: list[Call], names: dict[int, str], n: int, excluded: set[int]) -> Plan:
    """Return the method for each parameter.

    The closed form is used for a parameter that is used once, by a layer that is called once and whose output has ``n`` rows and
    is part of the graph.

    Args:
        outputs: Outputs of the module, (n, C).
        calls: Layer calls of the forward pass.
        names: Full name of each trainable parameter, by its ``id``.
        n: Number of examples.
        excluded: ``id`` of the layers whose rows are not examples.
    """
    nodes, uses = trace(outputs)
    times = Counter(id(call.layer) for call in calls)
    closed = []
    done: set[str] = set()
    for call in calls:
        layer = call.layer
        if times[id(layer)] > 1 or id(layer) in excluded or not call.is_unchanged() or call.edge.node not in nodes:
            continue
        if not fits(layer, call.input, n) or call.output.shape[0] != n:
            continue
        found = {
            local: names[id(p)]
            for local in ("weight", "bias")
            if (p := layer._parameters.get(local)) is not None and id(p) in names and uses[id(p)] == 1
        }
        if found:
            closed.append((call, found))
            done.update(found.values())
    return Plan(closed, [name for key, name in names.items() if uses[key] and name not in done])
