"""Side effects of measuring importance on a network with BatchNorm: outputs before and after, with equal weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from clbench.importance import mas
from comparison import formulas, from_avalanche
from comparison.one_task import accuracy, first_task, outputs, training

BATCH = 128

Pass = Callable[[nn.Module, Tensor, Tensor, int], Any]


def batch_norm_cnn(channels: int, classes: int) -> nn.Sequential:
    """Return a network of two blocks of conv 3x3, BatchNorm and ReLU, average pooling to 2x2, and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, classes)),
    )


def passes() -> dict[str, Pass]:
    """Return the passes by name, each in the mode that its source uses."""
    found: dict[str, Pass] = {
        "clbench fisher, mas": lambda net, x, y, b: (formulas.exact(net, x, y, b), mas(net, [(x, y)])),
        "PyCIL, FACIL: batches in train mode": lambda net, x, y, b: formulas.avalanche(net.train(), x, y, b),
        "Mammoth: one example at a time in train mode": lambda net, x, y, b: formulas.mammoth(net.train(), x, y, b),
    }
    if from_avalanche.available():
        found["Avalanche EWC, really run"] = from_avalanche.ewc
        found["Avalanche MAS, really run"] = from_avalanche.mas
    return found


def compare(data: str, seed: int, steps: int, examples: int) -> list[dict[str, Any]]:
    """Return a row per pass with the test accuracy before and after, for all ten classes of ``data`` as one task.

    ``moved`` is the mean over test examples of half the L1 distance between the predicted distributions before and after
    (0 if equal, 1 if disjoint). Each pass starts from the same network in train mode.
    """
    setup = first_task(data, seed, "data.tasks=1", f"batch_size={BATCH}")
    torch.manual_seed(seed)
    net = batch_norm_cnn(setup.x.shape[1], 10)
    for _ in training(setup._replace(net=net), [steps]):
        pass
    x, y = setup.x[:examples], setup.y[:examples]
    z = outputs(deepcopy(net), setup.x_test)
    rows = []
    for name, measure in passes().items():
        measured = deepcopy(net).train()
        measure(measured, x, y, BATCH)
        after = outputs(measured, setup.x_test)
        rows.append(
            {
                "pass": name,
                "moved": (after.softmax(1) - z.softmax(1)).abs().sum(1).mean().item() / 2,
                "accuracy_before": accuracy(z, setup.y_test),
                "accuracy_after": accuracy(after, setup.y_test),
            }
        )
    return rows
