"""L2 to the initial weights."""

from __future__ import annotations

import torch
from torch import nn

from clbench import L2Init
from clbench.params import snapshot
from tests.strategies.test_penalty import assert_same
from tests.strategies.test_si import OPTIMIZERS, Net, batches, fit


def by_hand(optimizer, lam, tasks, epochs):
    module = Net(optimizer)
    params = dict(module.named_parameters())
    initial = snapshot(params)
    for task in range(tasks):
        steps = module.optimizer(module.parameters())
        for batch in [batch for _ in range(epochs) for batch in batches(task)]:
            steps.zero_grad()
            penalty = lam / 2 * sum(((p - initial[n]) ** 2).sum() for n, p in params.items() if "heads.1" not in n)
            (module.loss(batch) + penalty).backward()
            steps.step()
    return snapshot(params), initial


def test_two_tasks_equal_a_loop_with_the_penalty_in_the_loss():
    for optimizer in OPTIMIZERS.values():
        module, strategy = Net(optimizer), L2Init(lam=0.3)
        for task in range(2):
            fit(module, strategy, task, max_epochs=3)
        weights, initial = by_hand(optimizer, 0.3, 2, 3)
        for n, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), weights[n], rtol=1e-9, atol=1e-12)
        assert_same(strategy.penalty.anchor, initial)


def test_a_new_parameter_is_anchored_before_its_first_task():
    module, strategy = Net(), L2Init(lam=0.3)
    fit(module, strategy)
    module.heads.append(nn.Linear(8, 3).double())
    module.task, new = 2, module.heads[2].weight.detach().clone()
    fit(module, strategy, task=1)
    assert torch.equal(strategy.penalty.anchor["heads.2.weight"], new)
    assert not torch.equal(module.heads[2].weight, new)
