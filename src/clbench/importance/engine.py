"""Sums over examples of the squared or absolute gradient of every parameter, for any module."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from clbench.importance.batching import count, merge_batches, move_to, shapes, take
from clbench.importance.example_statistics import ExampleStatistics, Sums, add_value
from clbench.importance.factors import Factor, Outer, SquareOrAbs, combined, pieces
from clbench.importance.graph import MOVES, Graph, Shared
from clbench.importance.measurement import Measurement
from clbench.importance.operation import Operation, Separate
from clbench.importance.output_gradients import OutputGradients
from clbench.importance.outputs import check_differentiable, forward
from clbench.importance.probe import Probe, probe
from clbench.importance.rules import factor_of
from clbench.importance.structure import Structure
from clbench.params import trainable, widen

CPU_FORWARD = 64 * 2**20
"""Memory for the activations and gradients of one forward pass on a CPU, in bytes."""

CPU_INNER = 2**20
"""Entries of per-example weight gradients on a CPU: few enough for the caches."""


def budgets(device: torch.device) -> tuple[int, int]:
    """Return the memory of a forward pass in bytes and the entries of per-example gradients.

    They are fixed on a CPU, and an eighth of the free memory each on a GPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 8, free // 32
    return CPU_FORWARD, CPU_INNER


BLOCK = 16
"""Columns processed together, so that a convolution unfolds its input once for all of them."""

SMALL = 64
"""Number of examples up to which small batches are merged, at most ``chunk``. Without it, a loader of single examples is slow."""

FEW = 16
"""Number of examples per forward pass, or that of the largest batch, that no limit of the memory lowers: fewer are slow."""

log = logging.getLogger(__name__)


class Engine:
    """Measure the importance of the parameters of one module. Must be used inside ``preserve_state``.

    Each batch takes one forward pass, and one backward pass per column of ``output_gradients``. The backward pass ends at the
    operations in which a parameter meets the examples. A rule per operation (``rules.py``) then gives the gradient of each
    example. Where the examples cannot be located in the graph (``Irregular``), they are measured one at a time.

    Args:
        module: Any module, in evaluation mode.
        output_gradients: Gradients at the outputs, K columns per example.
        square_or_abs: Elementwise function of a gradient, summed over K.
        options: Options of the measurement. Only ``outputs``, ``chunk`` and ``error`` are used. With ``error``, the squares of
            the examples' values are also summed.
    """

    def __init__(
        self, module: nn.Module, output_gradients: OutputGradients, square_or_abs: SquareOrAbs, options: Measurement
    ) -> None:
        self.module, self.output_gradients, self.square_or_abs = module, output_gradients, square_or_abs
        self.outputs, self.chunk = options.outputs, options.chunk
        self.params = trainable(module)
        self.names = {id(p): name for name, p in self.params.items()}
        self.device = next(iter(self.params.values())).device
        self.forward_budget, self.inner_budget = budgets(self.device)
        self.statistics = ExampleStatistics(self.params, second=options.error)
        self.largest = 1
        self.probes: dict[Any, Probe] = {}
        self.reasons: set[str] = set()
        self.without_rule: dict[str, str] = {}

    def run(self, batches: Iterable[Any]) -> ExampleStatistics:
        """Return the sums over all examples of ``batches``."""
        for batch in merge_batches(self._with_largest(batches), min(SMALL, self.chunk or SMALL)):
            batch = move_to(batch, self.device)
            n = count(batch)
            probed = self._probe(batch)
            number = math.ceil(n / self._chunk(probed, n))
            for i in range(number):
                piece = take(batch, slice(i * n // number, (i + 1) * n // number)) if number > 1 else batch
                self._add(piece, probed)
        self._report()
        return self.statistics

    def _with_largest(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches and note the size of the largest, with which the module can be trained."""
        for batch in batches:
            self.largest = max(self.largest, count(batch))
            yield batch

    def _probe(self, batch: Any) -> Probe:
        """Return the probe of batches of this kind, computed once. One or two examples do not show where the others would be."""
        kind = shapes(batch)
        if kind in self.probes and (self.probes[kind].examples > 2 or count(batch) <= 2):
            return self.probes[kind]
        needed = None if self.statistics.second is None else self.output_gradients
        self.probes[kind] = probe(self.module, self.outputs, batch, self.params, needed)
        return self.probes[kind]

    def _report(self) -> None:
        """Log which parameters were measured one example at a time, which is slow, and why."""
        for reason in sorted(self.reasons):
            log.warning("the examples are measured one at a time, which is slow, because %s", reason)
        if self.without_rule:
            share = sum(self.params[name].numel() for name in self.without_rule) / sum(
                map(Tensor.numel, self.params.values())
            )
            log.warning(
                "%.2g %% of the parameters (%s) are measured one example at a time, because there is no rule for %s",
                100 * share,
                ", ".join(list(self.without_rule)[:3]),
                ", ".join(sorted(set(self.without_rule.values()))),
            )

    def _chunk(self, probed: Probe, n: int) -> int:
        """Return the number of examples per forward pass."""
        if probed.structure is None:
            if probed.reason:
                self.reasons.add(probed.reason)
            return 1
        each = 2 * probed.saved + probed.columns * probed.edges
        fitting = max(min(FEW, self.largest), self.forward_budget // max(1, each))
        return min(n, self.chunk or n, fitting)

    def _add(self, batch: Any, probed: Probe) -> None:
        n = count(batch)
        result = forward(self.outputs, self.module, batch)
        check_differentiable(z := result.z)
        graph = None
        if n > 1:
            graph = Graph(z, self.names)
            if not self._fits(probed, graph, n):
                for i in range(n):
                    self._add(take(batch, slice(i, i + 1)), probed)
                return
        number, examples, each, _ = self.output_gradients(result.detached())
        columns = (v.to(z.dtype) for v in each)
        block = self._block(probed, n, number)
        while some := list(islice(columns, block)):
            if graph is None:
                self._example(z, some)
            else:
                assert probed.structure is not None
                Block(self, graph, probed.structure, z, some).add()
        self.statistics.count(n, examples)

    def _fits(self, probed: Probe, graph: Graph, n: int) -> bool:
        """Return whether the batch has the structure that its first examples show."""
        if probed.structure is None or not probed.structure.fits(graph, n):
            self.reasons.add(probed.reason or "the operations on a batch are not those on its first examples")
            return False
        return True

    def _block(self, probed: Probe, n: int, number: int) -> int:
        """Return the number of columns to process together: as many as fit in memory, or all if standard errors are measured."""
        if self.statistics.second is not None:
            return max(1, number)
        return max(1, min(BLOCK, self.forward_budget // max(1, n * probed.edges)))

    def _example(self, z: Tensor, columns: Sequence[Tensor]) -> None:
        """Add the values of a single example, by ordinary backward passes."""
        params = list(self.params.values())
        if self.statistics.second is None:  # one column at a time, which takes less memory
            for v in columns:
                for name, g in zip(
                    self.params, torch.autograd.grad(z, params, v, retain_graph=True, allow_unused=True), strict=True
                ):
                    if g is not None:
                        add_value(self.statistics.first[name], widen(g), self.square_or_abs)
            return
        by_column = [torch.autograd.grad(z, params, v, retain_graph=True, allow_unused=True) for v in columns]
        for name, p, gradients in zip(self.params, params, zip(*by_column, strict=True), strict=True):
            dense = torch.stack([torch.zeros_like(p) if g is None else g for g in gradients])
            self.statistics.of(name).add(self.square_or_abs(widen(dense[None])))


class Block:
    """The gradients of one batch for some columns, at the operations where parameters meet examples."""

    def __init__(
        self, engine: Engine, graph: Graph, structure: Structure, z: Tensor, columns: Sequence[Tensor]
    ) -> None:
        self.engine, self.graph, self.structure, self.n = engine, graph, structure, len(z)
        self.value, self.budget = engine.square_or_abs, engine.inner_budget
        edges = [graph.edge((node, 0)) for node in structure.nodes]
        apart = structure.separable if len(columns) > 1 else frozenset()
        found: dict[int, list[Tensor]] = {}
        for v in columns:
            each = torch.autograd.grad(z, edges, v, retain_graph=True, allow_unused=True)
            for (node, layout), g in zip(structure.nodes.items(), each, strict=True):
                if g is None:  # the outputs do not reach this node
                    continue
                g = layout.split(g, self.n)
                if node not in apart:
                    found.setdefault(node, []).append(g)
                elif node in found:
                    add_value(found[node][0], widen(g), self.value)
                else:
                    found[node] = [self.value(widen(g))]
        self.gradients: dict[int, Tensor] = {}  # (n, K, ...), or (n, 1, ...) with the sum over K of the values
        for node, several in found.items():
            if node in apart and self.value is torch.square:
                several[0].sqrt_()
            self.gradients[node] = widen(several[0].unsqueeze(1) if len(several) == 1 else torch.stack(several, 1))

    def add(self) -> None:
        """Add the values of every parameter to the statistics."""
        for name, sources in self.structure.sources.items():
            factors = [(source, factor) for source in sources for factor in self.factors(source)]
            if factors:
                self._add(name, self.engine.statistics.of(name), factors)

    def factors(self, source: Shared) -> list[Factor]:
        """Return the gradients of a shared tensor, one factor for each operation in which it meets examples."""
        shared = self.engine.params[source] if isinstance(source, str) else self.graph.edge(source)
        shape = shared.shape if isinstance(shared, Tensor) else self.graph.shape(*source)
        found = []
        for node, index, layout in self.structure.meetings[source]:
            if node in self.gradients:
                op = Operation(self.graph.nodes[node], index, shared, shape, layout, self.n)
                found.append(factor_of(op, self.gradients[node]))
                if isinstance(found[-1], Separate):
                    names = [name for name, sources in self.structure.sources.items() if source in sources]
                    self.engine.without_rule |= dict.fromkeys(names, op.node.name())
        return found

    def _add(self, name: str, sums: Sums, factors: list[tuple[Shared, Factor]]) -> None:
        """Add the values of one parameter. Where it is used more than once, the gradients are added before the value is taken."""
        moved = {source: self.structure.moved.get(source) for source, _ in factors}
        direct = [f for source, factor in factors if (f := self._in_place(factor, moved[source])) is not None]
        if len(direct) == len(factors) and (whole := combined(direct)) is not None:
            return whole.add_to(sums, self.value, self.budget)
        if len(factors) == 1 and moved[factors[0][0]] is not None:
            source, factor = factors[0]
            own = sums.viewed(lambda t: t.new_zeros(factor.shape))
            factor.add_to(own, self.value, self.budget)
            return sums.merge(own.viewed(lambda t: self._moved_back(source, t)))
        each = sum(f.each() for _, f in factors) + self.engine.params[name].numel()
        for piece in pieces(self.n, each, self.budget):
            dense = [self._pulled(source, name, factor.dense(piece)) for source, factor in factors]
            sums.add(self.value(sum(dense[1:], dense[0])))
        return None

    def _in_place(self, factor: Factor, moves: tuple[int, ...] | None) -> Factor | None:
        """Return the gradients of a parameter from those of the parameter or its transpose, None for other tensors."""
        if moves == ():
            return factor
        is_transpose = moves is not None and [self.structure.operations[i][0] for i in moves] == ["TBackward0"]
        return factor.transposed() if is_transpose and isinstance(factor, Outer) else None

    def _moved_back(self, source: Shared, t: Tensor) -> Tensor:
        """Return the entries of ``t``, which are those of ``source``, in their places in the parameter."""
        for i in reversed(self.structure.moved[source]):
            (before,) = (tensor for tensor in self.structure.operations[i][1] if tensor is not None)
            shape = self.engine.params[before].shape if isinstance(before, str) else self.graph.shape(*before)
            t = MOVES[self.structure.operations[i][0]](self.graph.nodes[i], t).reshape(shape)
        return t

    def _pulled(self, source: Shared, name: str, g: Tensor) -> Tensor:
        """Return gradients (m, K, *shape of source) with respect to the parameter ``name`` from which ``source`` is made."""
        if isinstance(source, str):
            return g
        p, flat = self.engine.params[name], g.flatten(0, 1)
        dtype = self.graph.nodes[source[0]]._input_metadata[source[1]].dtype

        def pull(g: Tensor, several: bool) -> Tensor:
            edge = self.graph.edge(source)
            return torch.autograd.grad([edge], [p], [g], is_grads_batched=several, retain_graph=True)[0]

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                pulled = pull(flat.to(dtype), True)
        except RuntimeError:  # an operation on parameters that vmap cannot trace, such as a custom function
            pulled = torch.stack([pull(one.to(dtype), False) for one in flat])
        return widen(pulled).view(*g.shape[:2], *p.shape)
