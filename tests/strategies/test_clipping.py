"""Gradient clipping by value acts on the sum of the gradients of the loss and of the penalty."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from clbench.data import task_of
from clbench.experiment.build import build
from tests.conftest import trainer

LIMIT = 0.01


class Weights(L.Callback):
    """Keeps the weights of the body before the first step of task 2 and after each of its steps."""

    def __init__(self):
        self.kept = []

    def on_train_start(self, trainer, pl_module):
        self.keep(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.keep(trainer, pl_module)

    def keep(self, trainer, module):
        if task_of(trainer).index == 1:
            self.kept.append(torch.cat([p.detach().flatten() for p in module.net.body.parameters()]))


@pytest.mark.filterwarnings("ignore:SGD with lr=1 and lam")
def test_value_clipping_includes_the_gradient_of_the_penalty(composed):
    """A penalty gradient of up to lam * LIMIT = 100 moves no weight by more than lr * LIMIT in a step of SGD."""
    cfg = composed("data.tasks=2", "strategy=l2", "lam=1e4", "optimizer=sgd", "lr=1")
    sequence, learner, strategy = build(cfg)
    strategy.attach(learner, sequence)
    weights = Weights()
    for task in sequence:
        options = {"gradient_clip_val": LIMIT, "gradient_clip_algorithm": "value"}
        trainer([strategy, weights], max_epochs=-1, max_steps=4, **options).fit(learner, datamodule=task)
    steps = torch.stack(weights.kept).diff(dim=0).abs()
    assert len(steps) == 4 and steps.max().item() == pytest.approx(LIMIT, rel=1e-3)
    at_limit = (steps > 0.99 * LIMIT).double().mean(dim=1)
    assert at_limit[0] < 0.5 < at_limit[1]  # the penalty is 0 at the first step, which starts at the anchor
