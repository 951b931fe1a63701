"""The space that the inputs of a layer span. Steps of the weights orthogonal to it do not change the outputs of the layer.

A linear layer maps an input x (I,) to W x + b. This is the product of the matrix (W, b) and the row (x, 1) of D = I + 1 numbers,
so the bias is a column of the weights. A convolution does so with each patch of its input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.importance.patches import patches_by_group

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

ROWS = 4096
"""Rows that are decomposed at a time."""


def layers_in(module: nn.Module) -> dict[str, Layer]:
    """Return the linear and convolutional layers all of whose parameters are trained, and are used by no other layer."""
    owners = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, Layer)
        and "weight" in part._parameters  # not in a parametrised layer
        and all(p.requires_grad and owners[id(p)] == 1 for p in part.parameters())
    }


def rows_of(layer: Layer, x: Tensor) -> Tensor:
    """Return the rows (N, D) of the inputs of a layer: (..., I) of a linear layer, (n, I, *in) of a convolution.

    The patches of all groups of a convolution are rows of one space, so D = I / groups * kernel, plus 1 with a bias.
    """
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2)
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        patches = patches_by_group(
            x[:, None],
            groups=layer.groups,
            kernel=layer.kernel_size,
            stride=layer.stride,
            padding=(0,) * len(layer.kernel_size),
            dilation=layer.dilation,
        )
        rows = patches.flatten(0, 2)
    return rows if layer.bias is None else F.pad(rows, (0, 1), value=1.0)


def compress(compressed: Tensor | None, rows: Tensor) -> Tensor:
    """Return at most D rows with the same R^T R as ``compressed`` and ``rows`` (N, D) together."""
    for part in rows.split(ROWS):
        stacked = part if compressed is None else torch.cat([compressed, part])
        compressed = torch.linalg.qr(stacked, mode="r").R
    assert compressed is not None
    return compressed


def extend(basis: Tensor | None, rows: Tensor, threshold: float, precision: float) -> Tensor:
    """Return an orthonormal basis that contains ``basis`` and explains at least ``threshold`` of the squares of ``rows``.

    Added are the fewest directions that do so: singular vectors of what the basis leaves of the rows.

    Args:
        basis: Columns (D, k). None is empty.
        rows: (N, D) in float64.
        threshold: Share of the sum of squares, in [0, 1].
        precision: Relative rounding error of the rows. Directions that may be rounding errors are not added.

    Example:
        >>> rows = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
        >>> extend(None, rows, 0.9, 1e-7).shape, extend(None, rows, 0.95, 1e-7).shape
        (torch.Size([3, 1]), torch.Size([3, 2]))
    """
    old = rows.new_zeros(rows.shape[1], 0) if basis is None else basis.to(rows)
    rest = rows - (rows @ old) @ old.T
    _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
    unexplained = sizes.square().flip(0).cumsum(0).flip(0)  # if this direction and all smaller ones are left out
    chosen = unexplained > (1 - threshold) * rows.square().sum() * (1 + 1e-12)  # both sums are rounded
    chosen &= sizes > precision * rows.shape[1] * rows.norm()
    extended: Tensor = torch.linalg.qr(torch.cat([old, directions[chosen].T], 1)).Q
    return extended


def matrix_of(weights: Sequence[Tensor]) -> Tensor:
    """Return weight and perhaps bias of a layer, or changes of them, as one matrix (O, D)."""
    return torch.cat([weights[0].flatten(1), *(bias[:, None] for bias in weights[1:])], 1)


def remove(weights: Sequence[Tensor], change: Sequence[Tensor], basis: Tensor) -> None:
    """Subtract from ``weights``, in place, the part S M M^T of a change S, which acts on inputs in the space of M, ``basis``."""
    part = (matrix_of(change).to(basis.dtype) @ basis) @ basis.T
    width = weights[0][0].numel()
    weights[0].sub_(part[:, :width].view_as(weights[0]))
    for bias in weights[1:]:
        bias.sub_(part[:, width])
