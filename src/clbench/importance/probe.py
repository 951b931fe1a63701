"""A check of two or three examples before the measurement: are the rows examples, are they independent, how large are they?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clbench.importance.batching import count, take
from clbench.importance.graph import Recorder, trace
from clbench.importance.outputs import check_differentiable, check_outputs
from clbench.params import in_float64


class Probe(NamedTuple):
    """The result of the check.

    Attributes:
        excluded: ``id`` of the layers whose rows are not the examples.
        saved: Bytes per example that the forward pass keeps.
        edges: Bytes per example of one gradient at the outputs of the layers.
        width: Number of outputs.
    """

    excluded: set[int]
    saved: int
    edges: int
    width: int


def probe(forward: Callable[[Any], tuple[Tensor, Any]], recorder: Recorder, batch: Any, storages: set[int]) -> Probe:
    """Run the first examples and return what they show.

    The input of a layer may have another first dimension (time, or one table for all examples) that happens to be as long as the
    batch. To find such layers, the gradient of one example's outputs is computed at every layer. It must be zero outside that
    example's row.

    Args:
        forward: Function that maps a batch to outputs (N, C) and targets.
        recorder: Recorder whose hooks are on the module.
        batch: A batch of at least one example, of which up to three are used.
        storages: Data pointers of the parameters and buffers, which do not count as memory.
    """
    few = take(batch, slice(0, 3))
    n = count(few)
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        pointer = t.untyped_storage().data_ptr()
        if pointer not in storages:
            kept[pointer] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        (z, _), calls = recorder.run(lambda: forward(few))
    check_outputs(z, n)
    check_differentiable(z)
    trace(z)  # raises for a graph that autograd.grad cannot follow
    excluded: set[int] = set()
    for row in {0, n - 1}:
        v = torch.zeros_like(z)
        v[row] = torch.linspace(1.0, 2.0, z.shape[1], dtype=torch.float64).cos().to(z)
        grads = (
            torch.autograd.grad(z, [c.edge for c in calls], v, retain_graph=True, allow_unused=True) if calls else ()
        )
        for call, g in zip(calls, grads, strict=True):
            if g is not None and (g.shape[0] != n or bool(g[:row].any()) or bool(g[row + 1 :].any())):
                excluded.add(id(call.layer))
    edges = sum(c.output.numel() * c.output.element_size() for c in calls)
    return Probe(excluded, sum(kept.values()) // n, edges // n, z.shape[1])


def check_independent(module: nn.Module, forward: Callable[[Any], tuple[Tensor, Any]], batch: Any) -> None:
    """Check that the outputs of the first examples do not change without the other examples.

    Raises:
        ValueError: The examples of a batch are coupled, so a value of a single example does not exist.
    """
    for name, m in module.named_modules():
        if isinstance(m, _BatchNorm) and m.running_mean is None:
            raise ValueError(
                f"layer {name or type(m).__name__!r} normalises by the statistics of its batch (track_running_stats=False), "
                "so the examples are coupled and have no importance of their own. Use running statistics or GroupNorm"
            )
    n = count(batch)
    if n < 2:
        return
    few = 1 if n == 2 else 2
    with torch.no_grad():
        alone, together = forward(take(batch, slice(0, few)))[0], forward(take(batch, slice(0, 4)))[0]
    check_outputs(alone, few)
    check_outputs(together, min(n, 4))
    precision = torch.finfo(together.dtype).eps
    alone, together = in_float64(alone), in_float64(together[:few])
    finite = together[together.isfinite()]
    scale = finite.abs().max() if finite.numel() else torch.tensor(0.0)
    tolerance = 100 * precision**0.75 * float(scale)
    if not torch.allclose(alone, together, rtol=0.0, atol=tolerance, equal_nan=True):
        raise ValueError(
            "the outputs of an example change with the other examples of its batch, or from call to call, so it has no "
            "importance of its own. Remove layers that mix examples or draw random numbers in evaluation mode"
        )
