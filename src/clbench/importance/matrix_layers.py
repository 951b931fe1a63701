"""The linear and convolutional layers of a module, found in the graph of its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from clbench.importance.graph import Graph, Shared
from clbench.importance.layout import VIEWS
from clbench.importance.structure import FIRST_FACTOR, Meeting, Structure

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
        source, moved = sources[0], structure.moved.get(sources[0])
        names = [structure.operations[i][0] for i in moved or ()]
        if len(sources) > 1 or moved is None or names not in ([], ["TBackward0"]):
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


def _biases(structure: Structure, graph: Graph, meeting: Meeting) -> Iterator[str]:
    """Yield the bias of the layer at ``meeting``: an input of its operation, or of a sum that alone uses its output."""
    name, inputs = structure.operations[meeting.node]
    size = graph.shape(meeting.node, 0)
    outputs = size[1] if name == "ConvolutionBackward0" else size[1 - meeting.layout.dim]

    def is_bias(tensor: Shared | None) -> bool:
        is_alone = isinstance(tensor, str) and structure.sources.get(tensor) == [tensor]
        return is_alone and len(structure.meetings[tensor]) == 1 and graph.lengths.get(tensor) == outputs  # type: ignore[index, arg-type]

    if name == "ConvolutionBackward0" and is_bias(inputs[2]):
        yield str(inputs[2])
    if name == "AddmmBackward0" and is_bias(inputs[0]) and _are_one(graph, meeting.node, "alpha", "beta"):
        yield str(inputs[0])
    out = meeting.node
    while len(users := [(i, op) for i, op in enumerate(structure.operations) if (out, 0) in op[1]]) == 1:
        out, (name, inputs) = users[0]
        if name == "AddBackward0" and _are_one(graph, out, "alpha"):
            yield from (str(tensor) for tensor in inputs if is_bias(tensor))
        if name not in VIEWS:
            return


def _are_one(graph: Graph, node: int, *names: str) -> bool:
    return all(getattr(graph.nodes[node], f"_saved_{name}") == 1 for name in names)
