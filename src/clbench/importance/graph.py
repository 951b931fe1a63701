"""The autograd graph of a forward pass: which parameters the outputs use, and the inputs of each layer with a closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from clbench.importance.layers import fits, form_of


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


class Call(NamedTuple):
    """One call of a layer. The version counters tell whether a tensor was changed in place afterwards."""

    layer: nn.Module
    input: Tensor
    input_version: int
    edge: GradientEdge
    output: Tensor
    output_version: int
    output_is_view: bool

    def intact(self) -> bool:
        """Input still what the layer saw; an output changed in place is fine unless it is a view (its edge is bypassed)."""
        changed = self.output_is_view and self.output._version != self.output_version
        return self.input._version == self.input_version and not changed


class Recorder:
    """Hooks on the layers with a closed form and a trainable parameter of their own; active only inside ``run``."""

    def __init__(self) -> None:
        self.calls: list[Call] | None = None

    def run(self, forward: Callable[[], Any]) -> tuple[Any, list[Call]]:
        """The result of ``forward()`` and the layer calls it made (a checkpoint's second forward comes too late to count)."""
        calls: list[Call] = []
        self.calls = calls
        try:
            return forward(), calls
        finally:
            self.calls = None

    def hook(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook, run before the user's hooks so that it sees the layer's own output."""
        if self.calls is None or not isinstance(output, Tensor) or not output.requires_grad:
            return
        a = (args[0] if args else kwargs["input"]).detach()
        self.calls.append(
            Call(layer, a, a._version, get_gradient_edge(output), output.detach(), output._version, output._is_view())
        )


@contextmanager
def recording(module: nn.Module) -> Iterator[Recorder]:
    """A recorder hooked to ``module``; the hooks are gone afterwards."""
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
    """Which parameters go which way: closed forms by layer call, the general path by name. The rest is unused (zero)."""

    closed: list[tuple[Call, dict[str, str]]]  # (call, local name -> full name)
    general: list[str]


def plan(outputs: Tensor, calls: list[Call], names: dict[int, str], n: int, excluded: set[int]) -> Plan:
    """Closed form only for a parameter used once, by a layer called once, whose output is live and has ``n`` rows.

    Args:
        outputs: (n, C).
        calls: the layer calls of the forward pass.
        names: full name by ``id`` of the trainable parameter.
        n: number of examples.
        excluded: ``id`` of layers whose rows are not examples.
    """
    nodes, uses = trace(outputs)
    times = Counter(id(call.layer) for call in calls)
    closed = []
    done: set[str] = set()
    for call in calls:
        layer = call.layer
        if times[id(layer)] > 1 or id(layer) in excluded or not call.intact() or call.edge.node not in nodes:
            continue
        if not fits(layer, call.input, n) or call.output.shape[0] != n:
            continue
        own = {
            local: names[id(p)]
            for local in ("weight", "bias")
            if (p := layer._parameters.get(local)) is not None and id(p) in names and uses[id(p)] == 1
        }
        if own:
            closed.append((call, own))
            done.update(own.values())
    return Plan(closed, [name for key, name in names.items() if uses[key] and name not in done])
