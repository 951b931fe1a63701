"""Per-example gradients at each kind of operation in which a tensor shared by all examples meets the examples.

``RULES`` maps the name of an operation in the autograd graph to its formula. A rule reads what the operation has saved for its
own backward pass, and the K gradients of each of the n examples at its output. Sums run over the positions p that share the
tensor:

    matrix product      dW[n, k] = sum_p a[n, p] g[n, k, p]^T
    convolution         dW[n, k] = sum_p g[n, k, p] patch[n, p]^T
    normalisation       dw[n, k] = sum_p g[n, k, p] xhat[n, p],  db[n, k] = sum_p g[n, k, p]
    product, division   dw[n, k] = g[n, k] times the other factor, summed to the shape of w
    sum, expansion      dw[n, k] = g[n, k], summed to the shape of w
    table               the rows that the example reads get g[n, k, p]

See Goodfellow 2015 (arXiv:1510.01799) for the linear layer and Rochette et al. 2019 (arXiv:1912.06015) for convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from clbench.importance.factors import Dense, Factor, Outer, Rows
from clbench.importance.operation import NoRule, Operation, Separate
from clbench.importance.patches import depthwise, patches_by_group

MEAN, MAXIMUM = 1, 2
"""Modes of ``EmbeddingBag``. 0 is the sum."""

BILINEAR = ([1, 3], [0], [1, 2])
"""The dimensions that a bilinear layer adds to its first input, weights and second input."""


def times(g: Tensor, scale: float) -> Tensor:
    """Return ``g * scale``, without a copy if the scale is 1, as it nearly always is."""
    return g if scale == 1 else g * scale


def summed_to(g: Tensor, shape: Sequence[int]) -> Tensor:
    """Return gradients (n, K, *sizes) of a broadcast tensor summed to its own shape, (n, K, *shape)."""
    sizes = g.shape[2:]
    padded = (1,) * (len(sizes) - len(shape)) + tuple(shape)
    dims = [d + 2 for d, (size, own) in enumerate(zip(sizes, padded, strict=True)) if size != own]
    return (g.sum(dims) if dims else g).reshape(*g.shape[:2], *shape)


def matrix_product(op: Operation, g: Tensor, left: str, right: str, first: int, scale: float = 1.0) -> Factor:
    """Return the factors of ``left @ right``, whose operands are inputs ``first`` and ``first + 1``, (B, R, I) and (B, I, O)."""
    g = times(g, scale)
    groups = g if g.dim() == 5 else g.unsqueeze(2)  # (n, K, B, rows, columns)
    if op.argument == first + 1 and op.layout.dim == g.dim() - 4:  # the examples are rows
        a = op.split(op.saved(left))
        return Outer(groups, a if a.dim() == 4 else a.unsqueeze(1), op.shape, is_transposed=True)
    if op.argument == first and op.layout.dim == g.dim() - 3:  # the examples are columns
        a = op.split(op.saved(right)).mT
        return Outer(groups.mT, a if a.dim() == 4 else a.unsqueeze(1), op.shape)
    raise NoRule


def matrix_times_vector(op: Operation, g: Tensor) -> Factor:
    """``self @ vec``, whose rows belong to the examples."""
    return Outer(g[:, :, None, :, None], op.split(op.saved("self")).unsqueeze(1), op.shape)


def bilinear(op: Operation, g: Tensor) -> Factor:
    """A bilinear layer, a linear layer of all products of two inputs."""
    if (
        op.argument != 1
        or tuple(map(list, (op.saved("expand1"), op.saved("expand2"), op.saved("expand3")))) != BILINEAR
    ):
        raise NoRule
    products = op.saved("i1")[:, :, None] * op.saved("i3")[:, None]
    return Outer(g.unsqueeze(2), op.split(products.flatten(1)).unsqueeze(1), op.shape)


def product_with_sum(op: Operation, g: Tensor) -> Factor:
    """``beta * input + alpha * mat1 @ mat2``, of matrices or batches of matrices."""
    if op.argument == 0:
        return Dense(times(summed_to(g, op.shape), op.saved("beta")))
    names = ("mat1", "mat2") if op.node.name() == "AddmmBackward0" else ("batch1", "batch2")
    return matrix_product(op, g, *names, 1, op.saved("alpha"))


def convolution(op: Operation, g: Tensor) -> Factor:
    """A convolution of any number of dimensions. The transposed one exchanges the roles of input and output."""
    if op.layout.dim != 0:
        raise NoRule
    n, k, repeats, o = g.shape[:4]  # (n, K, repeats, O, *out)
    if op.argument == 2:
        return Dense(g.flatten(4).sum((2, 4)) if g.dim() > 4 else g.sum(2))
    groups, stride, padding, dilation = (op.saved(name) for name in ("groups", "stride", "padding", "dilation"))
    unfold = partial(
        patches_by_group, groups=groups, kernel=op.shape[2:], stride=stride, padding=padding, dilation=dilation
    )
    inputs = op.split(op.saved("input"), 0)  # (n, repeats, I, *in)
    if (
        inputs.shape[2] == groups > 1
        and not op.saved("transposed")
        and g.dtype == torch.float32
        and g.device.type == "cpu"
    ):
        return Dense(depthwise(inputs, g, op.shape, stride, padding, dilation))
    if op.saved("transposed"):
        rows = inputs.reshape(n, repeats, groups, inputs.shape[2] // groups, -1).permute(0, 2, 1, 4, 3).flatten(2, 3)
        return Outer(unfold(g.flatten(0, 1)).unflatten(0, (n, k)), rows, op.shape, is_transposed=True)
    rows = g.reshape(n, k, repeats, groups, o // groups, -1).permute(0, 1, 3, 2, 5, 4).flatten(3, 4)
    return Outer(rows, inputs, op.shape, unfold=unfold)


def layer_norm(op: Operation, g: Tensor) -> Factor:
    """Layer normalisation."""
    if op.argument == 1:
        g = g * op.split((op.saved("input") - op.saved("result1")).mul_(op.saved("result2")))[:, None]
    return Dense(summed_to(g, op.shape))


def group_norm(op: Operation, g: Tensor) -> Factor:
    """Group normalisation, of inputs (N, C, ...)."""
    if op.argument == 1:
        x, n = op.saved("input"), op.saved("N")
        mean, rstd = op.saved("result1"), op.saved("result2")
        grouped = x.reshape(n, mean.shape[1], -1)
        g = g * op.split(((grouped - mean[..., None]) * rstd[..., None]).view(x.shape))[:, None]
    return Dense(channel_sums(g))


def batch_norm(op: Operation, g: Tensor) -> Factor:
    """Batch normalisation by running statistics, of inputs (N, C, ...)."""
    if op.saved("training"):
        raise NoRule
    if op.argument == 1:
        x, shape = op.saved("input"), (1, -1, *(1,) * (g.dim() - 4))
        mean, var = op.saved("running_mean").view(shape), op.saved("running_var").view(shape)
        g = g * op.split((x - mean) * torch.rsqrt(var + op.saved("eps")))[:, None]
    return Dense(channel_sums(g))


def channel_sums(g: Tensor) -> Tensor:
    """Return gradients (n, K, repeats, C, ...) summed to (n, K, C)."""
    return g.sum([d for d in range(2, g.dim()) if d != 3])


def embedding(op: Operation, g: Tensor) -> Factor:
    """A table whose rows are read."""
    tokens = op.split(op.saved("indices")).reshape(op.n, -1)
    values = g.reshape(*g.shape[:2], tokens.shape[1], -1)
    if op.saved("scale_grad_by_freq"):
        count = (tokens[:, None] == tokens[:, :, None]).sum(2)  # in the example, not in the batch
        values = values / count[:, None, :, None]
    padding = op.saved("padding_idx")
    if 0 <= padding < op.shape[0]:
        values = values * (tokens != padding)[:, None, :, None]
    return Rows(tokens, values, op.shape)


def embedding_bag(op: Operation, g: Tensor) -> Factor:
    """Sums or means of equally many rows of a table for each example."""
    if op.saved("scale_grad_by_freq"):
        raise ValueError(
            "EmbeddingBag with scale_grad_by_freq=True: the gradient of an example depends on the other examples. "
            "Use scale_grad_by_freq=False"
        )
    rows, weights, padding = (op.saved(name) for name in ("indices", "per_sample_weights", "padding_idx"))
    bags, mode = op.saved("result1"), op.saved("mode")
    expected = torch.arange(op.n, device=bags.device).repeat_interleave(len(rows) // op.n)
    is_regular = g.shape[2] == 1 and torch.equal(expected, bags.long())
    if op.argument != 0 or mode == MAXIMUM or not is_regular or 0 <= padding < op.shape[0]:
        raise NoRule
    rows = rows.view(op.n, -1)
    values = g.expand(-1, -1, rows.shape[1], -1) / (rows.shape[1] if mode == MEAN else 1)
    if weights is not None:
        values = values * weights.view(op.n, 1, -1, 1)
    return Rows(rows, values, op.shape)


def indexing(op: Operation, g: Tensor) -> Factor:
    """``table[index]`` with one tensor of row numbers."""
    index, *others = op.saved("indices")
    if others or index is None or index.dtype == torch.bool or index.dim() <= op.layout.dim:
        raise NoRule
    rows = op.split(index % op.shape[0]).reshape(op.n, -1)
    return Rows(rows, g.reshape(*g.shape[:2], rows.shape[1], *op.shape[1:]), op.shape)


def addition(op: Operation, g: Tensor) -> Factor:
    """``self + alpha * other``."""
    return Dense(times(summed_to(g, op.shape), op.saved("alpha") if op.argument == 1 else 1))


def subtraction(op: Operation, g: Tensor) -> Factor:
    """``self - alpha * other``."""
    return Dense(times(summed_to(g, op.shape), -op.saved("alpha") if op.argument == 1 else 1))


def multiplication(op: Operation, g: Tensor) -> Factor:
    """``self * other``."""
    other = op.saved("self" if op.argument == 1 else "other")
    return Dense(summed_to(g * op.aligned(other, g.dim() - 2), op.shape))


def division(op: Operation, g: Tensor) -> Factor:
    """``self / other``."""
    other = op.aligned(op.saved("other"), g.dim() - 2)
    if op.argument == 0:
        return Dense(summed_to(g / other, op.shape))
    return Dense(summed_to(-g * op.aligned(op.saved("self"), g.dim() - 2) / other.square(), op.shape))


def product_added(op: Operation, g: Tensor) -> Factor:
    """``self + value * tensor1 * tensor2``."""
    if op.argument > 0:
        other = op.saved("tensor2" if op.argument == 1 else "tensor1")
        g = times(g * op.aligned(other, g.dim() - 2), op.saved("value"))
    return Dense(summed_to(g, op.shape))


def power(op: Operation, g: Tensor) -> Factor:
    """``self ** exponent`` of real numbers, with a learned exponent."""
    x = op.aligned(op.saved("self"), g.dim() - 2)
    if op.argument == 0 or x.is_complex():
        raise NoRule
    slope = op.aligned(op.saved("result"), g.dim() - 2) * x.log()
    is_constant = (x == 0) & (op.aligned(op.saved("exponent"), g.dim() - 2) >= 0)
    return Dense(summed_to(g * slope.masked_fill(is_constant, 0), op.shape))


def selection(op: Operation, g: Tensor) -> Factor:
    """``where(condition, self, other)``."""
    condition = op.aligned(op.saved("condition"), g.dim() - 2)
    return Dense(summed_to(g * (condition if op.argument == 0 else ~condition), op.shape))


def prelu(op: Operation, g: Tensor) -> Factor:
    """A rectifier with a learned slope."""
    x = op.aligned(op.saved("self"), g.dim() - 2)
    return Dense(summed_to(g * x.clamp(max=0), op.shape))


def expansion(op: Operation, g: Tensor) -> Factor:
    """Copies of a tensor for each example."""
    return Dense(summed_to(g, op.shape))


def repetition(op: Operation, g: Tensor) -> Factor:
    """Copies of a tensor along any of its dimensions."""
    if op.layout.outer != 1:
        raise NoRule
    for d, size in enumerate((1,) * (g.dim() - 2 - len(op.shape)) + tuple(op.shape), start=2):
        g = g.unflatten(d, (-1, size)).sum(d)
    return Dense(g.reshape(*g.shape[:2], *op.shape))


def index_selection(op: Operation, g: Tensor) -> Factor:
    """Rows of a table by a vector of row numbers."""
    if op.saved("dim") != 0:
        raise NoRule
    rows = op.split(op.saved("index")).reshape(op.n, -1)
    return Rows(rows, g.reshape(*g.shape[:2], rows.shape[1], *op.shape[1:]), op.shape)


RULES: dict[str, Callable[[Operation, Tensor], Factor]] = {
    "MmBackward0": partial(matrix_product, left="self", right="mat2", first=0),
    "BmmBackward0": partial(matrix_product, left="self", right="mat2", first=0),
    "AddmmBackward0": product_with_sum,
    "BaddbmmBackward0": product_with_sum,
    "MvBackward0": matrix_times_vector,
    "TrilinearBackward0": bilinear,
    "ConvolutionBackward0": convolution,
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
    "NativeBatchNormBackward0": batch_norm,
    "EmbeddingBackward0": embedding,
    "EmbeddingBagBackward0": embedding_bag,
    "IndexBackward0": indexing,
    "AddBackward0": addition,
    "SubBackward0": subtraction,
    "MulBackward0": multiplication,
    "DivBackward0": division,
    "AddcmulBackward0": product_added,
    "PowBackward1": power,
    "WhereBackward0": selection,
    "PreluKernelBackward0": prelu,
    "ExpandBackward0": expansion,
    "RepeatBackward0": repetition,
    "IndexSelectBackward0": index_selection,
}
"""The rules by the names of operations in the autograd graph. A rule raises ``NoRule`` for a case that it does not cover."""


def factor_of(op: Operation, g: Tensor) -> Factor:
    """Return the gradients (n, K, *shape) of the shared input of ``op`` from those at its output, (n, K, ...)."""
    try:
        rule = RULES.get(op.node.name())
        factor = Separate(op, g) if rule is None else rule(op, g)
    except NoRule:
        return Separate(op, g)
    if isinstance(factor, Dense) and factor.values.is_complex() and not op.is_complex:
        return Dense(factor.values.real)  # a real tensor that meets complex examples
    return factor
