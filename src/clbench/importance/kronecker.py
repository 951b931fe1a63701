"""The Fisher information of linear and convolutional layers as Kronecker products, and the diagonal of all other parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from clbench.importance.batching import count, take
from clbench.importance.engine import Block, Engine
from clbench.importance.factors import Outer, pieces
from clbench.importance.fisher import Check, FisherArguments, divided, with_gradients
from clbench.importance.graph import Graph, Shared
from clbench.importance.matrix_layers import MatrixLayer, matrix_layers, products_without_layer
from clbench.importance.measure import check_finite, drawn
from clbench.importance.measurement import Measurement
from clbench.importance.output_gradients import OutputGradients
from clbench.importance.outputs import check_differentiable, forward
from clbench.importance.probe import Probe
from clbench.importance.structure import Structure
from clbench.params import Params

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """The Kronecker factors of one layer: its Fisher is A kron G, of vec(dW) with the columns of dW one after another.

    Attributes:
        inputs: A, (I + 1, I + 1), or (I, I) without a bias.
        gradients: G, (O, O).
    """

    inputs: Tensor
    gradients: Tensor


class KroneckerFisher(NamedTuple):
    """The Fisher information of a module.

    Attributes:
        diagonal: The diagonal for the parameters that belong to no layer, by name.
        factors: The factors of each layer.
    """

    diagonal: Params
    factors: dict[MatrixLayer, Pair]


def kronecker_fisher(
    module: nn.Module, batches: Iterable[Any], **arguments: Unpack[FisherArguments]
) -> KroneckerFisher:
    """Return the Fisher information with Kronecker factors for each linear and convolutional layer (KFAC, KFC).

    With a[n, p] the inputs of the layer for example n at position p, followed by a 1 if the layer has a bias, with g[n, k, p] the
    gradients at its outputs for column k of the likelihood's scores, and with P positions,

        A = 1/N sum_n sum_p a[n, p] a[n, p]^T        G = 1/N sum_n 1/P sum_k sum_p g[n, k, p] g[n, k, p]^T

    and vec(dW)^T (A kron G) vec(dW) = tr(dW^T G dW A) approximates the quadratic form of the Fisher. A linear layer with one
    position has P = 1 (Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature"). Of a
    convolution, a[n, p] is a patch of the input (Grosse and Martens 2016, "A Kronecker-factored approximate Fisher matrix for
    convolution layers", theorem 1: A is summed over positions and G averaged). A linear layer that is applied to tokens or pixels
    is treated in the same way. All P positions count, also those of padding. The product is the Fisher itself if the layer has
    one position and there is one example, or if a and g are independent.

    Layers are found in the graph of the outputs, so that layers that call ``torch.nn.functional`` are found too. A weight that is
    used several times, made of other parameters, or used in a grouped, depthwise or transposed convolution, has the diagonal of
    ``fisher``. One line of the log names these weights. A single example is measured with a copy of itself that does not count.

    Args:
        module, batches: See ``fisher``.
        arguments: See ``fisher``. ``fisher_batch`` must be 1, because the factors are defined over examples.

    Raises:
        ValueError: See ``fisher``. Also if ``fisher_batch`` is above 1, if the examples cannot be located in the graph, or if
            batches of different shapes use different layers.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> found = kronecker_fisher(net, [torch.ones(1, 2)])
        >>> found.factors[MatrixLayer("weight", "bias")].inputs
        tensor([[1., 1., 1.],
                [1., 1., 1.],
                [1., 1., 1.]])
    """
    label_options, options = divided(arguments)
    if options.fisher_batch > 1:
        raise ValueError(
            f"fisher_batch={options.fisher_batch}: expected 1, because Kronecker factors are over examples. Use fisher_batch=1"
        )

    def run(gradients: OutputGradients, options: Measurement, check: Check) -> KroneckerFisher:
        with drawn(module, batches, options, check) as (used, _):
            return KroneckerEngine(module, gradients, torch.square, options).fisher(used)

    return with_gradients(run, label_options, options)


class KroneckerEngine(Engine):
    """Measure the Kronecker factors of layers, and the diagonal of the other parameters. Must be used in ``preserve_state``."""

    _layers: frozenset[MatrixLayer] | None = None

    def fisher(self, batches: Iterable[Any]) -> KroneckerFisher:
        """Return the Fisher information over all examples of ``batches``."""
        self.sums: dict[MatrixLayer, Pair] = {}
        self.plans: dict[int, tuple[dict[MatrixLayer, Shared], Structure]] = {}
        self.without_factors: set[str] = set()
        statistics = self.run(batches)
        of_layers = {name for layer in self.sums for name in layer.names}
        diagonal = {name: f for name, f in statistics.mean().items() if name not in of_layers}
        factors = {layer: Pair(*(total / statistics.examples for total in sums)) for layer, sums in self.sums.items()}
        check_finite({**diagonal, **{str(layer.weight): sum(map(torch.trace, p)) for layer, p in factors.items()}})  # type: ignore[misc]
        return KroneckerFisher(diagonal, factors)

    def _probe(self, batch: Any) -> Probe:
        """Return the probe of at least three examples, because fewer do not show where they are in the graph."""
        n = count(batch)
        return super()._probe(batch if n > 2 else take(batch, torch.arange(3).clamp(max=n - 1)))

    def _report(self) -> None:
        super()._report()
        if self.without_factors:
            log.warning(
                "%s: the diagonal Fisher is used instead of Kronecker factors, because the weight is used several times, made of "
                "other parameters, or used in a convolution with groups or a transposed one",
                ", ".join(sorted(self.without_factors)),
            )

    def _add(self, batch: Any, probed: Probe) -> None:
        n = count(batch)
        whole = take(batch, torch.zeros(2, dtype=torch.long)) if n == 1 else batch
        result = forward(self.outputs, self.module, whole)
        check_differentiable(z := result.z)
        graph = Graph(z, self.names)
        if not self._fits(probed, graph, len(z)):
            raise ValueError(
                f"Kronecker factors need the place of each example in the graph, which is not known: {min(self.reasons)}. Use "
                "the diagonal Fisher (ewc)"
            )
        assert probed.structure is not None
        layers, others = self._plan(probed.structure, graph)
        alone = forward(self.outputs, self.module, batch) if n == 1 else result
        number, examples, each, counts = self.output_gradients(alone.detached())
        counts = torch.ones(n, dtype=torch.bool, device=z.device) if counts is None else counts
        columns = (torch.cat([v, v.new_zeros(len(z) - n, *v.shape[1:])]).to(z.dtype) for v in each)
        is_first = True
        while some := list(islice(columns, self._block(probed, n, number))):
            block = Block(self, graph, others, z, some)
            block.add()
            for layer, source in layers.items():
                for factor in block.factors(source):
                    assert isinstance(factor, Outer)
                    self._add_gradients(self.sums[layer], factor)
                    if is_first:
                        self._add_inputs(self.sums[layer], factor, counts, layer.bias is not None)
            is_first = False
        self.statistics.count(n, examples)

    def _plan(self, structure: Structure, graph: Graph) -> tuple[dict[MatrixLayer, Shared], Structure]:
        """Return the layers, and the structure of the other parameters."""
        if id(structure) not in self.plans:
            layers = matrix_layers(structure, graph)
            if self._layers is not None and self._layers != layers.keys():
                raise ValueError(
                    "batches of different shapes use different layers, so the factors of a layer are not defined. Use batches of "
                    "one shape, or the diagonal Fisher (ewc)"
                )
            self._layers = frozenset(layers)
            names = {name for layer in layers for name in layer.names}
            sources = {name: tensors for name, tensors in structure.sources.items() if name not in names}
            nodes = {meeting.node for source in layers.values() for meeting in structure.meetings[source]}
            others = replace(structure, sources=sources, separable=structure.separable - nodes)
            self.plans[id(structure)] = layers, others
            self.without_factors |= products_without_layer(structure, layers)
            for layer in layers:
                if layer not in self.sums:
                    self.sums[layer] = self._zeros(layer)
        return self.plans[id(structure)]

    def _zeros(self, layer: MatrixLayer) -> Pair:
        weight = self.params[str(layer.weight)]
        width = weight.shape[1 if layer.is_transposed else 0]
        total, dtype = weight.numel() // width + (layer.bias is not None), self.statistics.dtypes[str(layer.weight)]
        return Pair(*(torch.zeros(size, size, dtype=dtype, device=weight.device) for size in (total, width)))

    def _add_gradients(self, sums: Pair, factor: Outer) -> None:
        positions, width = factor.g.shape[-2:]
        g = factor.g.reshape(-1, width).to(sums.gradients.dtype)
        sums.gradients.addmm_(g.T, g, alpha=1 / positions)

    def _add_inputs(self, sums: Pair, factor: Outer, counts: Tensor, has_bias: bool) -> None:
        a, size = factor.a[: len(counts)][counts], len(sums.inputs)
        for piece in pieces(len(a), factor.g.shape[-2] * size, self.inner_budget):
            rows = factor.unfold(a[piece]) if factor.unfold else a[piece]
            rows = rows.reshape(-1, rows.shape[-1]).to(sums.inputs.dtype)
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1) if has_bias else rows
            sums.inputs.addmm_(rows.T, rows)
