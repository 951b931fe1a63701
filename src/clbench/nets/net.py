"""Net: a body with a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """``head(body(x), task)``: inputs (N, ...) and their task -> the outputs that compete, such as (N, C).

    Args:
        body: Maps inputs (N, ...) to features: (N, F), (N, T, F) for tokens, or (N, F, H, W) for pixels.
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
    """Return the number of features that ``body`` computes from one input of ``shape``, see ``features_on``.

    Example:
        >>> features_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
        10
    """
    return features_on(body, torch.zeros(2, *shape))


def features_on(body: nn.Module, x: Tensor, positions: Sequence[int] = ()) -> int:
    """Return the number of features that ``body`` computes from inputs ``x``.

    It runs the body in evaluation mode. Modes, statistics and random states do not change; lazy layers are initialised.

    Args:
        body: The body.
        x: Two inputs.
        positions: Shape of the positions that have a label each, (T,) for tokens or (H, W) for pixels. Then the features are
            (N, T, F) or (N, F, H, W).

    Raises:
        ValueError: The output of the body is not a tensor of this shape. Exceptions of the body are not caught.

    Example:
        >>> features_on(nn.Embedding(256, 16), torch.zeros(2, 8, dtype=torch.int64), positions=(8,))
        16
    """
    modes = [(part, part.training) for part in body.modules()]
    body.eval()
    try:
        with torch.no_grad():
            features = body(x)
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(features, Tensor):
        raise ValueError(
            f"body: expected a tensor (2, features) for 2 inputs, got {type(features).__name__}. Return the features alone"
        )
    of_pixels = len(positions) == 2
    where = 1 if of_pixels else len(positions) + 1
    found = tuple(features.shape)
    if features.ndim != len(positions) + 2 or found[:where] + found[where + 1 :] != (2, *positions):
        wanted = ", ".join(map(str, (2, "features", *positions) if of_pixels else (2, *positions, "features")))
        remedy = "Flatten the output"
        if positions:
            remedy = "Use a net that keeps the positions"
        elif features.ndim == 3:
            remedy = "Return one vector per example, such as the mean over the tokens"
        raise ValueError(f"body: expected shape ({wanted}) for 2 inputs, got {found}. {remedy}")
    return found[where]
