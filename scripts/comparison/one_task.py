"""The first task of a clbench data preset, a network for it, and plain training, shared by the comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clbench.config.options import conf_dir
from clbench.data import Task
from clbench.experiment.build import build
from clbench.nets import Net


class OneTask(nn.Module):
    """Network for inputs of one task: x (N, ...) -> the outputs (N, C) that compete in the task."""

    def __init__(self, net: Net, task: int = 0) -> None:
        super().__init__()
        self.body, self.head, self.task = net.body, net.head, task

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x), self.task)


class Setup(NamedTuple):
    """A network, training examples ``x``, ``y`` in a fixed order, and test examples ``x_test``, ``y_test``."""

    net: nn.Module
    task: Task
    batch_size: int
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def first_task(data: str, seed: int, *overrides: str) -> Setup:
    """Return task 0 of ``data=split_<data>`` without validation data, and a network with a single output layer."""
    fixed = ("data.validation=0", "scenario=task", "scenario.head=single", "strategy=finetune")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [f"data=split_{data}", *fixed, f"seed={seed}", *overrides])
    sequence, learner, _ = build(cfg)
    task = sequence[0]
    train, test = list(task.importance_dataloader()), list(task.test_dataloader()[0])
    parts = [torch.cat([getattr(b, part) for b in batches]) for batches in (train, test) for part in ("x", "y")]
    return Setup(OneTask(learner.net), task, cfg.batch_size, *parts)


def training(setup: Setup, steps: list[int]) -> Iterator[int]:
    """Train by cross-entropy with Adam and lr 1e-3, and yield each of ``steps`` (ascending) when it is reached."""
    optimizer = torch.optim.Adam(setup.net.parameters(), lr=1e-3)
    batches = _forever(setup.task)
    taken = 0
    for step in steps:
        setup.net.train()
        for _ in range(step - taken):
            batch = next(batches)
            optimizer.zero_grad()
            cross_entropy(setup.net(batch.x), batch.y).backward()
            optimizer.step()
        taken = step
        yield step


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs (N, C) of ``net`` in evaluation mode, which it keeps."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(1000)])


def accuracy(z: Tensor, y: Tensor) -> float:
    """Return the share of examples whose largest output is the true label."""
    return (z.argmax(1) == y).double().mean().item()


def _forever(task: Task) -> Iterator:
    while True:
        yield from task.train_dataloader()
