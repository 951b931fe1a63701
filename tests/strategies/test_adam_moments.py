"""The second moments of Adam as importance."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from clbench.errors import ConfigError
from clbench.params import snapshot
from clbench.strategies import AdamMoments, Strategy
from tests.conftest import trainer
from tests.strategies.test_penalty import Plain, assert_same, learn
from tests.strategies.test_si import Net, batches, fit


def by_hand(lam, tasks, epochs, make, betas):
    """Return the sum of the importances and the weighted mean of the anchors, with moments computed step by step."""
    module = Net(make)
    params = dict(module.named_parameters())
    past = []
    for task in range(tasks):
        steps, moments, number = module.optimizer(module.parameters()), {}, 0
        for batch in [batch for _ in range(epochs) for batch in batches(task)]:
            grads = torch.autograd.grad(module.loss(batch), list(params.values()), allow_unused=True)
            number += 1
            for (n, p), g in zip(params.items(), grads, strict=True):
                if g is not None:
                    p.grad = g + sum(lam * f[n] * (p.detach() - a[n]) for f, a in past)
                    moments[n] = betas[1] * moments.get(n, 0) + (1 - betas[1]) * p.grad**2
            steps.step()
        moments = {n: moments.get(n, 0 * p.detach()) / (1 - betas[1] ** number) for n, p in params.items()}
        past.append((moments, snapshot(params)))
    total = {n: sum(f[n] for f, _ in past) for n in params}
    return total, {n: sum(f[n] * a[n] for f, a in past) / total[n] for n in params}


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_two_tasks_equal_a_loop(optimizer):
    make = partial(optimizer, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.0)
    module, strategy = Net(make), AdamMoments(lam=50.0)
    for task in range(2):
        fit(module, strategy, task, max_epochs=3)
    total, anchor = by_hand(50.0, 2, 3, make, (0.8, 0.95))
    for n, expected in total.items():
        torch.testing.assert_close(strategy.penalty.importance[n], expected, rtol=1e-8, atol=1e-16)
        if "heads.1" not in n:
            torch.testing.assert_close(strategy.penalty.anchor[n], anchor[n], rtol=1e-8, atol=1e-12)
    assert not strategy.penalty.importance["heads.1.weight"].any()


def test_another_optimizer_is_refused_before_training(run):
    with pytest.raises(ConfigError, match="AdamMoments with SGD: expected Adam or AdamW"):
        trainer([AdamMoments()]).fit(Net(), batches(0))
    with pytest.raises(ConfigError, match="Use optimizer=adam or optimizer=adamw, or strategy=ewc"):
        run("strategy=adam_moments", "optimizer=sgd", "lr=0.1")


def test_lam_0_is_fine_tuning_bit_for_bit():
    module = learn(Plain(torch.optim.Adam, 1e-2), AdamMoments(lam=0.0), carry=True)
    assert_same(module, learn(Plain(torch.optim.Adam, 1e-2), Strategy(), carry=True))
