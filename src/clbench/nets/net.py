"""Net: a body with a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """``head(body(x), task)``: inputs (N, ...) and their task -> the outputs (N, C) that compete.

    Args:
        body: Maps inputs (N, ...) to features (N, F).
        head: Maps features and task to outputs, for example ``MultiHead``.

    Example:
        >>> from clbench.nets import MultiHead, mlp
        >>> net = Net(mlp((3,), hidden=(4,)), MultiHead(4, sizes=[2, 2]))
        >>> net(torch.zeros(5, 3), task=0).shape
        torch.Size([5, 2])
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(x), task)
        return outputs


def features_of(body: nn.Module, shape: Sequence[int]) -> int:
    """Return the number of features that ``body`` computes from one input of ``shape``.

    It runs the body in evaluation mode on two inputs of zeros. Modes, statistics and random states do not change; lazy layers are
    initialised.

    Raises:
        ValueError: The output of the body is not a tensor (2, features). Exceptions of the body are not caught.

    Example:
        >>> features_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
        10
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
            f"body: expected a tensor (2, features) for 2 inputs, got {type(features).__name__}. Return the features alone"
        )
    if features.ndim != 2 or len(features) != 2:
        raise ValueError(
            f"body: expected shape (2, features) for 2 inputs, got {tuple(features.shape)}. Flatten the output"
        )
    return features.shape[1]
