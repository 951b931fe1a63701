"""Net: a body with a head on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """``head(body(x), task)``: inputs (N, ...) and their task -> the outputs (N, C) that compete."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(x), task)
        return outputs


def features_of(body: nn.Module, shape: Sequence[int]) -> int:
    """Width of what ``body`` makes of one input of ``shape``, by a dry run in evaluation mode on two inputs of zeros.

    The mode of every part is as before, statistics and random states too; lazy layers get their shapes.

    Raises:
        ValueError: the body does not give a tensor (2, features); whatever the body raises.
    """
    modes = [(part, part.training) for part in body.modules()]
    body.eval()
    try:
        with torch.no_grad():
            features = body(torch.zeros(2, *shape))
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(features, Tensor):
        raise ValueError(
            f"the body gives a {type(features).__name__}; a head needs a tensor (2, features) for 2 inputs"
        )
    if features.ndim != 2 or len(features) != 2:
        raise ValueError(f"the body gives {tuple(features.shape)} for 2 inputs; a head needs (2, features): flatten it")
    return features.shape[1]
