"""Sums over examples of the squared or absolute gradient of every parameter, for any module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from clbench.importance.batching import count, merge_batches, move_to, shapes, take
from clbench.importance.example_statistics import ExampleStatistics
from clbench.importance.general import General, Measured
from clbench.importance.graph import Call, Recorder, plan, recording
from clbench.importance.layers import FORMS, embedding, form_of
from clbench.importance.measurement import Measurement
from clbench.importance.output_gradients import OutputGradients
from clbench.importance.outputs import check_differentiable, check_outputs
from clbench.importance.probe import Probe, check_independent, probe
from clbench.params import trainable

CPU_FORWARD = 64 * 2**20
"""Memory for the activations and layer gradients of one forward pass on a CPU, in bytes."""

CPU_INNER = 4 * 2**20
"""Memory for per-example weight gradients on a CPU, in bytes: small enough for the caches."""


def budgets(device: torch.device) -> tuple[int, int]:
    """Return the memory (forward, inner) in bytes: fixed on a CPU, an eighth of the free memory each on a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 8, free // 8
    return CPU_FORWARD, CPU_INNER


SquareOrAbs = Callable[..., Tensor]
"""``torch.square`` or ``torch.abs``."""

BLOCK = 16
"""Columns processed together, so that a convolution unfolds its input once for all of them."""

SMALL = 64
"""Smaller batches are merged up to this size, or up to ``chunk``, so that a loader of single examples is not slow."""


class Engine:
    """Measures one module. Must be used inside ``preserve_state``.

    Each batch takes one forward pass, and one backward pass per column of ``output_gradients`` that stops at the outputs of the
    layers. A closed form per layer then gives the per-example parameter gradients. Parameters without a closed form are
    handled by ``general``.

    Args:
        module: Any module, in evaluation mode.
        output_gradients: Gradients at the outputs, K columns per example.
        square_or_abs: Elementwise function of a gradient, summed over K.
        options: Options of the measurement, of which ``outputs``, ``chunk`` and ``error`` are used. With ``error`` the squares
            of each example's value are summed too.
    """

    def __init__(
        self, module: nn.Module, output_gradients: OutputGradients, square_or_abs: SquareOrAbs, options: Measurement
    ) -> None:
        self.module, self.output_gradients, self.square_or_abs = module, output_gradients, square_or_abs
        self.outputs, self.chunk = options.outputs, options.chunk
        self.params = trainable(module)
        if not self.params:
            raise ValueError(
                "no parameter of the module requires grad, so there is nothing to measure. Set requires_grad"
            )
        self.names = {id(p): name for name, p in self.params.items()}
        self.device = next(iter(self.params.values())).device
        self.forward_budget, self.inner_budget = budgets(self.device)
        self.measured = Measured(module, options.outputs)
        self.general = General(self.measured, self.forward_budget)
        self.statistics = ExampleStatistics(self.params, second=options.error)
        self.probes: dict[Any, Probe] = {}

    def run(self, batches: Iterable[Any]) -> ExampleStatistics:
        """Return the sums over all examples of ``batches``."""
        with recording(self.module) as recorder:
            for batch in merge_batches(batches, min(SMALL, self.chunk or SMALL)):
                batch = move_to(batch, self.device)
                n = count(batch)
                probed = self._probe(recorder, batch)
                pieces = math.ceil(n / self._chunk(probed, n))
                for i in range(pieces):
                    piece = take(batch, slice(i * n // pieces, (i + 1) * n // pieces)) if pieces > 1 else batch
                    self._add(recorder, piece, probed)
        return self.statistics

    def _probe(self, recorder: Recorder, batch: Any) -> Probe:
        """Return the probe of batches of this kind, computed once.

        Batches of one example are a kind of their own, because they cannot show whether rows are examples.
        """
        kind = (shapes(batch), count(batch) > 1)
        if kind not in self.probes:
            check_independent(self.module, self.measured, batch)
            tensors = [*self.module.parameters(), *self.module.buffers()]
            storages = {t.untyped_storage().data_ptr() for t in tensors}
            self.probes[kind] = probe(self.measured, recorder, batch, storages)
        return self.probes[kind]

    def _chunk(self, probed: Probe, n: int) -> int:
        """Return the number of examples per forward pass."""
        columns = 1 if self.statistics.second is None else self.output_gradients.count(probed.width)
        each = 2 * probed.saved + columns * probed.edges
        return max(1, min(n, self.chunk or n, self.forward_budget // max(1, each)))

    def _add(self, recorder: Recorder, batch: Any, probed: Probe) -> None:
        n = count(batch)
        (z, y), calls = recorder.run(lambda: self.outputs(self.module, batch))
        check_outputs(z, n)
        check_differentiable(z)
        todo = plan(z, calls, self.names, n, probed.excluded)
        wide = z.detach().to(torch.promote_types(z.dtype, torch.float32))
        columns = (v.to(z.dtype) for v in self.output_gradients.columns(wide, y))
        block = self._block(probed, n, z.shape[1])
        while some := list(islice(columns, block)):
            self._closed(z, todo.closed, some)
            if todo.general:
                params = {name: self.params[name] for name in todo.general}
                for grads in self.general(params, batch, torch.stack(some, 1), probed.saved):
                    for name, g in grads.items():
                        self.statistics.add(name, self.square_or_abs(_widen(g)))
        self.statistics.examples += n

    def _block(self, probed: Probe, n: int, c: int) -> int:
        """Return the number of columns to process together: all for standard errors, else as many as fit in memory."""
        if self.statistics.second is not None:
            return max(1, self.output_gradients.count(c))
        return max(1, min(BLOCK, self.forward_budget // max(1, n * probed.edges)))

    def _closed(self, z: Tensor, todo: list[tuple[Call, dict[str, str]]], columns: list[Tensor]) -> None:
        if not todo:
            return
        edges = [call.edge for call, _ in todo]
        gradients = [torch.autograd.grad(z, edges, v, retain_graph=True, allow_unused=True) for v in columns]
        for (call, names), g in zip(todo, zip(*gradients, strict=True), strict=True):
            if g[0] is not None:
                self._layer(call, names, g)

    def _layer(self, call: Call, names: dict[str, str], g: tuple[Tensor, ...]) -> None:
        """Add the values of one layer, from its input and the K gradients g at its output, each (n, ...)."""
        layer, a = call.layer, call.input
        kind = form_of(layer)
        if kind is nn.Embedding:
            rows = embedding(layer, a, _widen(torch.stack(g, 1)), self.square_or_abs)  # type: ignore[arg-type]
            self.statistics.add_rows(names["weight"], *rows)
            return
        a = _widen(a)
        if kind is nn.Linear and a.dim() == 2:
            left = self.square_or_abs(_widen(g[0]))
            for more in g[1:]:
                _add(left, _widen(more), self.square_or_abs)
            if "weight" in names:
                self.statistics.add_outer(names["weight"], left, self.square_or_abs(a))
            if "bias" in names:
                self.statistics.add(names["bias"], left.unsqueeze(1))
            return
        form = FORMS[kind]  # type: ignore[index]
        for piece in _pieces(a, g, sum(self.params[name].numel() for name in names.values()), self.inner_budget):
            some = [_widen(column[piece]) for column in g]
            gradients = form(
                layer, a[piece], torch.stack(some, 1) if len(some) > 1 else some[0].unsqueeze(1), set(names)
            )
            for local, gradient in gradients.items():
                self.statistics.add(names[local], self.square_or_abs(gradient, out=gradient))


def _pieces(a: Tensor, g: tuple[Tensor, ...], numel: int, budget: int) -> Iterator[slice]:
    """Yield slices of examples whose weight gradients and patches (estimated as nine times the input) fit ``budget`` bytes."""
    n = len(a)
    each = a.element_size() * (len(g) * (numel + g[0][0].numel()) + 9 * a[0].numel())
    size = max(1, budget // each)
    for start in range(0, n, size):
        yield slice(start, start + size)


def _add(total: Tensor, g: Tensor, square_or_abs: SquareOrAbs) -> Tensor:
    """Add square_or_abs(g) to ``total`` in place. Squares take one pass over the memory."""
    return total.addcmul_(g, g) if square_or_abs is torch.square else total.add_(square_or_abs(g))


def _widen(t: Tensor) -> Tensor:
    """Return ``t`` in float32 or wider."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
