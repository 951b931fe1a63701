"""The linear and convolutional layers of a module, found in the graph of its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from clbench.importance.graph import Graph, Shared
from clbench.importance.layout import VIEWS
from clbench.importance.structure import FIRST_FACTOR, Meeting, Structure

CAST = "ToCopyBackward0"
"""The operation that changes the dtype of a parameter, in mixed precision."""

PRODUCTS = (*FIRST_FACTOR, "BmmBackward0", "BaddbmmBackward0", "ConvolutionBackward0")
"""Operations that multiply a weight with inputs."""


class MatrixLayer(NamedTuple):
    """The names of the parameters of a layer, whose matrix is [W b] with shape (O, I + 1).

    W is the weight with all dimensions but the first flattened, (O, I). If ``is_transposed``, the weight is (I, O).

    Attributes:
        weight, bias: Names of the parameters. None if the layer has no bias, or if one of the two is not penalised.
        is_transposed: Whether the weight is the transpose of W, as in ``transformers.pytorch_utils.Conv1D``.
    """

    weight: str | None
    bias: str | None
    is_transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)


def matrix_layers(structure: Structure, graph: Graph) -> dict[MatrixLayer, Shared]:
    """Return the layers, and for each the tensor that meets the examples: its weight or the transpose.

    A layer is a matrix product or a convolution, not transposed and in one group, that uses its weight once, and the weight is a
    parameter. A bias belongs to it if it is added to all outputs of the layer, and nowhere else.
    """
    found = {}
    for weight, sources in structure.sources.items():
        source, names = sources[0], _moves(structure, sources[0])
        if len(sources) > 1 or names not in ([], ["TBackward0"]):
            continue
        if len(structure.meetings[source]) == 1 and (meeting := structure.meetings[source][0]):
            name, node = structure.operations[meeting.node][0], graph.nodes[meeting.node]
            if name == "ConvolutionBackward0":
                is_layer = (meeting.argument, meeting.layout.dim, names) == (1, 0, [])
                is_layer = is_layer and node._saved_groups == 1 and not node._saved_transposed  # type: ignore[attr-defined]
                is_transposed = False
            else:
                first = FIRST_FACTOR.get(name)
                is_layer = first is not None and (meeting.argument, meeting.layout.dim) in ((first, 1), (first + 1, 0))
                is_transposed = (meeting.argument != first) == (names == [])
            if is_layer:
                bias = next(_biases(structure, graph, meeting), None)
                found[MatrixLayer(weight, bias, is_transposed)] = source
    return found


def products_without_layer(structure: Structure, layers: dict[MatrixLayer, Shared]) -> set[str]:
    """Return the parameters that an operation multiplies with inputs, and that are no weight of a layer."""
    weights = {layer.weight for layer in layers}
    return {
        name
        for name, sources in structure.sources.items()
        for source in sources
        for node, argument, _ in structure.meetings[source]
        if name not in weights and _is_multiplied(structure.operations[node][0], argument)
    }


def _is_multiplied(operation: str, argument: int) -> bool:
    is_sum = operation.startswith(("Addmm", "Baddbmm"))
    return operation in PRODUCTS and (argument == 1 if operation.startswith("Conv") else argument > 0 or not is_sum)


def _moves(structure: Structure, tensor: Shared) -> list[str] | None:
    """Return the operations that make a tensor of one parameter, without casts. None if it is made in another way."""
    moved = structure.moved.get(tensor)
    return None if moved is None else [name for i in moved if (name := structure.operations[i][0]) != CAST]


def _biases(structure: Structure, graph: Graph, meeting: Meeting) -> Iterator[str]:
    """Yield the bias of the layer at ``meeting``: an input of its operation, or of a sum that alone uses its output."""
    name, inputs = structure.operations[meeting.node]
    size = graph.shape(meeting.node, 0)
    outputs = size[1] if name == "ConvolutionBackward0" else size[1 - meeting.layout.dim]

    def of(tensor: Shared | None) -> Iterator[str]:
        """Yield the parameter that is ``tensor``, if it has one number per output and is used once."""
        for parameter, sources in structure.sources.items():
            is_alone = sources == [tensor] and len(structure.meetings[sources[0]]) == 1
            if is_alone and _moves(structure, sources[0]) == [] and graph.lengths[parameter] == outputs:
                yield parameter

    if name == "ConvolutionBackward0":
        yield from of(inputs[2])
    if name == "AddmmBackward0" and _are_one(graph, meeting.node, "alpha", "beta"):
        yield from of(inputs[0])
    out = meeting.node
    while len(users := [(i, op) for i, op in enumerate(structure.operations) if (out, 0) in op[1]]) == 1:
        out, (name, inputs) = users[0]
        if name == "AddBackward0" and _are_one(graph, out, "alpha"):
            yield from (bias for tensor in inputs for bias in of(tensor))
        if name not in VIEWS:
            return


def _are_one(graph: Graph, node: int, *names: str) -> bool:
    return all(getattr(graph.nodes[node], f"_saved_{name}") == 1 for name in names)
