"""Shrink and perturb. tests/training/test_checkpointing.py resumes it inside a task."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from clbench import ShrinkPerturb
from clbench.errors import ConfigError
from clbench.params import snapshot
from clbench.strategies import Strategy
from tests.conftest import trainer
from tests.strategies.test_penalty import Plain, assert_same, learn
from tests.strategies.test_si import Net, batches
from tests.training.test_checkpointing import Save


class AtStart(L.Callback):
    """Records the weights at the start of a fit, after the strategy has changed them."""

    def on_train_start(self, trainer, pl_module):
        self.found = snapshot(dict(pl_module.named_parameters()))


def start(module, strategy, task):
    """Learn a task. Return the weights before it and at its start."""
    before, at_start = snapshot(dict(module.named_parameters())), AtStart()
    trainer([strategy, at_start], precision="64-true").fit(module, batches(task))
    return before, at_start.found


def test_weights_are_shrunk_before_each_task_but_the_first():
    module, strategy = Net(), ShrinkPerturb(shrink=0.25, sigma=0.0)
    assert_same(*start(module, strategy, 0))
    for task in (1, 2):
        before, found = start(module, strategy, task)
        assert_same(found, {n: 0.25 * p for n, p in before.items()})


def test_the_noise_is_normal_and_follows_from_seed_and_task():
    noise = {}
    for seed in (0, 0, 1):
        module, strategy = Net(), ShrinkPerturb(shrink=0.5, sigma=0.1, seed=seed)
        start(module, strategy, 0)
        for task in (1, 2):
            before, found = start(module, strategy, task)
            new = torch.cat([(found[n] - 0.5 * p).flatten() for n, p in before.items()])
            if (seed, task) in noise:
                torch.testing.assert_close(new, noise[seed, task])
            noise[seed, task] = new
    assert not torch.allclose(noise[0, 1], noise[1, 1]) and not torch.allclose(noise[0, 1], noise[0, 2])
    pooled = torch.cat([noise[key] for key in noise])
    assert pooled.std().item() == pytest.approx(0.1, rel=0.1) and abs(pooled.mean().item()) < 0.02


def test_state_dict_restores_the_number_of_tasks():
    module, first, second = Net(), ShrinkPerturb(), ShrinkPerturb()
    start(module, first, 0)
    second.load_state_dict(first.state_dict())
    weights, after = snapshot(module.state_dict()), []
    for strategy in (first, second):
        module.load_state_dict(weights)
        start(module, strategy, 1)
        after.append(snapshot(module.state_dict()))
    assert_same(*after)


def test_a_first_task_begun_by_another_strategy_counts(tmp_path):
    """In a sweep, runs share the first task."""
    module, strategy = Net(), ShrinkPerturb(shrink=0.25, sigma=0.0)
    trainer([Strategy(), Save(tmp_path / "a.ckpt")], precision="64-true", max_epochs=2).fit(module, batches(0))
    resumed = {"ckpt_path": tmp_path / "a.ckpt", "weights_only": True}
    trainer([strategy], precision="64-true", max_epochs=2).fit(module, batches(0), **resumed)
    before, found = start(module, strategy, 1)
    assert_same(found, {n: 0.25 * p for n, p in before.items()})


def test_shrink_1_and_sigma_0_is_fine_tuning_bit_for_bit():
    module = learn(Plain(), ShrinkPerturb(shrink=1.0, sigma=0.0), carry=True)
    assert_same(module, learn(Plain(), Strategy(), carry=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shrink": 1.1}, r"shrink=1.1: expected a number in \[0, 1\]"), ({"sigma": -1}, "sigma=-1: expected a finite")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ShrinkPerturb(**options)
