"""Outputs and targets by position: tokens, pixels, labels, or a single position for outputs (N, C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Positions(NamedTuple):
    """The outputs and targets of a batch, arranged by position.

    Attributes:
        z: Outputs (N, P, C).
        y: Targets (N, P), None if there are none.
        counts: Which positions count, (N, P). None counts all of them.
        restore: Maps a tensor (N, P, C) to the shape of the outputs.
    """

    z: Tensor
    y: Tensor | None
    counts: Tensor | None
    restore: Callable[[Tensor], Tensor]

    def number(self) -> Tensor | int:
        """Return the number of positions that count, for each example (N, 1, 1)."""
        if self.counts is None:
            return self.z.shape[1]
        return self.counts.sum(1).clamp(min=1)[:, None, None].to(self.z.dtype)


def class_dimension(z: Tensor, y: Any, class_dim: int | None) -> int:
    """Return the dimension of outputs (N, ..., C) or (N, C, ...) that contains the classes.

    It follows from the shape of the targets, which is that of the outputs without this dimension. Where both readings fit, images
    (N, C, H, W) have their classes first, as torch has them, and sequences are not known.

    Raises:
        ValueError: It is not known, or ``class_dim`` is not a dimension of the outputs.

    Example:
        >>> import torch
        >>> class_dimension(torch.zeros(2, 5, 8, 8), torch.zeros(2, 8, 8), None)
        1
    """
    shape = tuple(z.shape)
    if len(shape) < 2:
        raise ValueError(
            f"outputs {shape} with loss=cross_entropy: expected (N, C). Use loss=binary_cross_entropy for one logit"
        )
    if class_dim is not None:
        if not -len(shape) <= class_dim < len(shape) or class_dim % len(shape) == 0:
            raise ValueError(f"class_dim={class_dim}: expected a dimension of the outputs {shape} other than the first")
        return class_dim % len(shape)
    if len(shape) == 2:
        return 1
    fitting = [d for d in (len(shape) - 1, 1) if isinstance(y, Tensor) and tuple(y.shape) == shape[:d] + shape[d + 1 :]]
    if len(fitting) == 1 or (fitting and len(shape) > 3):
        return fitting[-1]
    targets = f"targets {tuple(y.shape)}" if isinstance(y, Tensor) else "no targets"
    wanted = f"{shape[:-1]} for classes last, or {shape[:1] + shape[2:]} for classes first"
    raise ValueError(
        f"outputs {shape} with {targets}: {'both readings fit' if fitting else f'expected targets {wanted}'}. "
        f"Pass class_dim=-1 or class_dim=1, the dimension of the classes"
    )


def expand_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a mask of the first dimensions of ``shape``, expanded to all of it.

    Raises:
        ValueError: The mask has another shape.
    """
    if tuple(mask.shape) != tuple(shape[: mask.dim()]) or mask.dim() == 0:
        raise ValueError(
            f"mask of the outputs: expected shape {tuple(shape)}, or its first dimensions, got {tuple(mask.shape)}"
        )
    return mask.reshape(*mask.shape, *(1,) * (len(shape) - mask.dim())).expand(shape)


def mask_of_outputs(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a mask of outputs of this shape, from one of their positions with classes first or last.

    Raises:
        ValueError: The mask has another shape, or one that fits in two ways.
    """
    is_first = len(shape) > 2 and tuple(mask.shape) == (shape[0], *shape[2:])
    if is_first and mask.shape == shape[: mask.dim()]:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)}: both readings fit the outputs {shape}. Pass a mask of shape {shape}"
        )
    return mask.unsqueeze(1).expand(shape) if is_first else expand_mask(mask, shape)
