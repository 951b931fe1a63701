"""Heads: from the features of a body to the outputs that compete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Slice = tuple[int, int]
"""First column, and last column plus one."""


class Head(nn.Module, ABC):
    """Base of heads: ``head(features, task)`` -> the outputs that compete.

    The features are one vector per example (N, F), per token (N, T, F), or per pixel (N, F, H, W). The outputs have the same
    shape with C instead of F. Outputs that a task does not have are -inf.
    """

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Return the outputs.

        Args:
            features: (N, F), (N, T, F) or (N, F, H, W).
            task: One task for the batch, or one per example, (N,).
        """
        if features.dim() == 4:
            return self.outputs(features.movedim(1, -1), task).movedim(-1, 1)
        return self.outputs(features, task)

    @abstractmethod
    def outputs(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Return the outputs (N, ..., C) of features (N, ..., F)."""


class MultiHead(Head):
    """One linear layer per task. The heads of other tasks get no gradient from a batch of one task.

    If every example has its own task, all heads are computed so that nothing waits for the device. Heads that no example uses
    then get a gradient of zeros.

    Args:
        features: Number of features of the body.
        sizes: Number of outputs of each task.

    Example:
        >>> head = MultiHead(4, sizes=[2, 3])
        >>> head(torch.zeros(5, 4), task=1).shape
        torch.Size([5, 3])
    """

    def __init__(self, features: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(features, size) for size in sizes)
        self.has_equal_sizes = len(set(sizes)) == 1

    def outputs(self, features: Tensor, task: int | Tensor) -> Tensor:
        if isinstance(task, int):
            return self._outputs(task, features)
        outputs = [self._outputs(k, features) for k in range(len(self.heads))]
        if not self.has_equal_sizes:
            width = max(z.shape[-1] for z in outputs)
            outputs = [nn.functional.pad(z, (0, width - z.shape[-1]), value=float("-inf")) for z in outputs]
        rows = torch.arange(len(features), device=features.device)
        return torch.stack(outputs, dim=1)[rows, task]

    def _outputs(self, task: int, features: Tensor) -> Tensor:
        outputs: Tensor = self.heads[task](features)
        return outputs


class SlicedHead(Head):
    """One linear layer, of which the columns ``slices[task]`` compete.

    In domain-incremental runs these are the same columns for every task, in class-incremental runs all columns up to the newest
    class, and in task-incremental runs with one output layer (van de Ven 2025) the columns of the task.

    Args:
        features: Number of features of the body.
        slices: First column and last column plus one, for each task.

    Example:
        >>> head = SlicedHead(4, slices=[(0, 2), (0, 4)])  # class-incremental
        >>> head(torch.zeros(5, 4), task=0).shape, head(torch.zeros(5, 4), task=1).shape
        (torch.Size([5, 2]), torch.Size([5, 4]))
    """

    columns: Tensor
    absent: Tensor

    def __init__(self, features: int, slices: Sequence[Slice]) -> None:
        super().__init__()
        self.linear = nn.Linear(features, max(stop for _, stop in slices))
        self.slices = tuple(slices)
        self.is_shared = len(set(slices)) == 1  # the same columns compete in every task
        width = max(stop - start for start, stop in slices)
        columns = torch.stack([(start + torch.arange(width)) for start, _ in slices])
        absent = columns >= torch.tensor([stop for _, stop in slices])[:, None]
        self.register_buffer("columns", columns.masked_fill(absent, 0), persistent=False)
        self.register_buffer("absent", absent, persistent=False)

    def outputs(self, features: Tensor, task: int | Tensor) -> Tensor:
        outputs: Tensor = self.linear(features)
        if isinstance(task, int) or self.is_shared:
            start, stop = self.slices[task if isinstance(task, int) else 0]
            return outputs[..., start:stop]
        per_position = (len(outputs), *(1,) * (outputs.dim() - 2), -1)
        columns, absent = (values[task].view(per_position) for values in (self.columns, self.absent))
        return outputs.gather(-1, columns.expand(*outputs.shape[:-1], -1)).masked_fill(absent, float("-inf"))
