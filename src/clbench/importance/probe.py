"""A look at a few examples before the measurement: are they independent, where are they in the graph, how large are they?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.modules.batchnorm import _BatchNorm

from clbench.importance.batching import count, take
from clbench.importance.graph import Graph, Irregular
from clbench.importance.order import order_rows
from clbench.importance.output_gradients import OutputGradients
from clbench.importance.outputs import Outputs, check_differentiable, forward, is_default
from clbench.importance.structure import Structure, compare
from clbench.params import Params, in_float64

log = logging.getLogger(__name__)


@dataclass
class Probe:
    """The result of the check.

    Attributes:
        structure: Where parameters meet the examples. None if this is not known, so that examples are measured one at a time.
        reason: Why it is not known.
        saved: Bytes per example that the forward pass keeps.
        edges: Bytes per example of one gradient at the operations where parameters meet the examples.
        columns: Number of gradients at the outputs that are needed at the same time.
        examples: Number of examples that were used.
    """

    structure: Structure | None
    reason: str
    saved: int
    edges: int
    columns: int
    examples: int


def probe(
    module: nn.Module, outputs: Outputs, batch: Any, params: Params, output_gradients: OutputGradients | None
) -> Probe:
    """Run the first examples and return what they show.

    Args:
        module: The module, in evaluation mode.
        outputs: Function of (module, batch) that returns outputs and targets.
        batch: A batch of at least one example, of which up to four are used.
        params: The parameters to measure.
        output_gradients: The gradients at the outputs if those of an example are needed at the same time.

    Raises:
        ValueError: The examples are coupled, or the outputs cannot be differentiated.
    """
    check_statistics(module)
    some = take(batch, slice(0, 4))
    n = count(some)
    few = 1 if n == 2 else 2
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = forward(outputs, module, some)
    check_differentiable(z := result.z)
    for t in (*module.parameters(), *module.buffers()):
        kept.pop(t.untyped_storage().data_ptr(), None)
    names = {id(p): name for name, p in params.items()}
    graph = Graph(z, names)
    check_hidden(z, graph, params)
    structure, reason, edges = None, "", 0
    if n > 1:
        alone = forward(outputs, module, take(some, slice(0, few))).z
        check_equal(alone.detach(), z.detach(), module, outputs, some)
    if n > 2:
        try:
            structure = order_rows(compare(Graph(alone, names), graph, few, n), z, graph)
            edges = sum(graph.shape(node, 0).numel() for node in structure.nodes) * z.element_size()
        except Irregular as found:
            reason = str(found)
    columns = 1 if output_gradients is None else output_gradients(result.detached()).number
    return Probe(structure, reason, sum(kept.values()) // n, edges // n, columns, n)


def check_hidden(z: Tensor, graph: Graph, params: Params) -> None:
    """Check that no parameter gets its gradient inside a function of Python that the graph does not show.

    Such a function calls ``backward`` itself. It is run once, and ``.grad`` of all parameters is restored.

    Raises:
        ValueError: A parameter that is not in the graph gets a gradient.
    """
    met = {tensor for _, inputs in graph.structure for tensor in inputs}
    hidden = {name: p for name, p in params.items() if name not in met}
    functions = [node for node in graph.nodes if isinstance(node, torch.autograd.function.BackwardCFunction)]
    inputs = [GradientEdge(before, i) for node in functions for before, i in node.next_functions if before is not None]
    if not hidden or not inputs:
        return
    before = {name: p.grad for name, p in hidden.items()}
    try:
        for p in hidden.values():
            p.grad = None
        torch.autograd.grad(z, inputs, torch.ones_like(z), retain_graph=True, allow_unused=True)
        found = [name for name, p in hidden.items() if p.grad is not None]
    finally:
        for name, p in hidden.items():
            p.grad = before[name]
    if found:
        raise ValueError(
            f"parameter {found[0]!r} gets its gradient inside {functions[0].name()}, which hides it from autograd.grad. Pass it "
            "to the function as an input"
        )


def check_independent(module: nn.Module, outputs: Outputs, batch: Any) -> None:
    """Check that the outputs of the first examples do not change without the other examples.

    Raises:
        ValueError: The examples of a batch are coupled, so a value of a single example does not exist.
    """
    check_statistics(module)
    n = count(batch)
    if n < 2:
        return
    few = 1 if n == 2 else 2
    with torch.no_grad():
        alone, together = (forward(outputs, module, take(batch, slice(0, m))).z for m in (few, 4))
    check_equal(alone, together, module, outputs, take(batch, slice(0, 4)))


def check_statistics(module: nn.Module) -> None:
    """Raise ValueError if a layer normalises by the statistics of its batch in evaluation mode."""
    for name, m in module.named_modules():
        if isinstance(m, _BatchNorm) and m.running_mean is None:
            raise ValueError(
                f"layer {name or type(m).__name__!r} normalises by the statistics of its batch (track_running_stats=False), "
                "so the examples are coupled and have no importance of their own. Use running statistics or GroupNorm"
            )


def check_equal(alone: Tensor, together: Tensor, module: nn.Module, outputs: Outputs, batch: Any) -> None:
    """Check that the outputs of some examples equal their outputs in a larger batch.

    A function ``outputs`` of the user may draw random numbers, such as labels. With the same random state, the outputs of an
    example must then be the same with any other examples.

    Raises:
        ValueError: They are not.
    """
    if is_close(alone, together):
        return
    few, n = len(alone), len(together)
    if not is_default(outputs):
        others = take(batch, torch.arange(n, device=together.device) % few)
        with torch.no_grad():
            for some in (batch, others):
                with torch.random.fork_rng([together.device] if together.is_cuda else []):
                    alone, together = forward(outputs, module, some).z[:few], alone
        if is_close(alone, together):
            log.warning("outputs draws random numbers, so the importance is that of one draw for each example")
            return
    raise ValueError(
        "the outputs of an example change with the other examples of its batch, or from call to call, so it has no "
        "importance of its own. Remove layers that mix examples or draw random numbers in evaluation mode"
    )


def is_close(alone: Tensor, together: Tensor) -> bool:
    """Return whether outputs are equal up to rounding to the first rows of other outputs."""
    precision = torch.finfo(together.dtype).eps
    alone, together = in_float64(alone), in_float64(together[: len(alone)])
    finite = together[together.isfinite()]
    scale = finite.abs().max() if finite.numel() else torch.tensor(0.0)
    tolerance = 100 * precision**0.75 * float(scale)
    return torch.allclose(alone, together, rtol=0.0, atol=tolerance, equal_nan=True)
