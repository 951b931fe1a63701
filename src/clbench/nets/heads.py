"""Heads: from the features of a body to the outputs that compete."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Slice = tuple[int, int]


class MultiHead(nn.Module):
    """A linear layer of its own for every task: a head that a batch of one task does not use gets no gradient.

    With a task for each example all heads are run, so that nothing waits for the device: those that no example uses
    get a gradient of zeros.

    Args:
        features: width of the body's output.
        sizes: number of outputs of each task.
    """

    def __init__(self, features: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(features, size) for size in sizes)
        self.equal = len(set(sizes)) == 1

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Features (N, F); task: one for the whole batch, or (N,) -> outputs (N, C); -inf where a task has fewer."""
        if isinstance(task, int):
            return self._outputs(task, features)
        outputs = [self._outputs(k, features) for k in range(len(self.heads))]
        if not self.equal:
            width = max(z.shape[1] for z in outputs)
            outputs = [nn.functional.pad(z, (0, width - z.shape[1]), value=float("-inf")) for z in outputs]
        rows = torch.arange(len(features), device=features.device)
        return torch.stack(outputs, dim=1)[rows, task]

    def _outputs(self, task: int, features: Tensor) -> Tensor:
        outputs: Tensor = self.heads[task](features)
        return outputs


class SlicedHead(nn.Module):
    """One linear layer, of which the columns ``slices[task]`` compete.

    Domain-incremental: the same columns for every task. Class-incremental: all columns up to the newest class.
    Task-incremental with one output layer (van de Ven 2025): the task's own columns.

    Args:
        features: width of the body's output.
        slices: first and last-plus-one column of each task.
    """

    columns: Tensor
    absent: Tensor

    def __init__(self, features: int, slices: Sequence[Slice]) -> None:
        super().__init__()
        self.linear = nn.Linear(features, max(stop for _, stop in slices))
        self.slices = tuple(slices)
        width = max(stop - start for start, stop in slices)
        columns = torch.stack([(start + torch.arange(width)) for start, _ in slices])
        absent = columns >= torch.tensor([stop for _, stop in slices])[:, None]
        self.register_buffer("columns", columns.masked_fill(absent, 0), persistent=False)
        self.register_buffer("absent", absent, persistent=False)

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Features (N, F); task: one for the whole batch, or (N,) -> outputs (N, C); -inf where a task has fewer."""
        outputs: Tensor = self.linear(features)
        if isinstance(task, int):
            start, stop = self.slices[task]
            return outputs[:, start:stop]
        return outputs.gather(1, self.columns[task]).masked_fill(self.absent[task], float("-inf"))
