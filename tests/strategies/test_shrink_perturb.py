"""Shrink and perturb. tests/training/test_checkpointing.py resumes it inside a task."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from clbench import ShrinkPerturb
from clbench.errors import ConfigError
from clbench.experiment.build import build, build_net
from clbench.params import snapshot
from clbench.seeding import derive, reseed
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


def weights(net):
    return {f"net.{name}": p for name, p in net.named_parameters()}


def fresh_noise(sequence, learner, shrink, sigma):
    """Train two tasks. Return the noise of the second: the weights at its start less the shrunk weights, over sigma."""
    strategy, at_start = ShrinkPerturb(shrink, sigma, seed=3, noise="fresh"), AtStart()
    for index in range(2):
        before = snapshot(dict(learner.named_parameters()))
        trainer([strategy, at_start], precision="64-true").fit(learner, datamodule=sequence[index])
    return {n: (at_start.found[n] - shrink * p) / sigma for n, p in before.items()}


@pytest.mark.parametrize("options", [[], ["net.init=kaiming"], ["scenario=class", "net.init=zero_head"], ["net=cnn"]])
def test_fresh_noise_is_the_weights_of_a_new_net(composed, options):
    cfg = composed("data=split_digits", *options)
    sequence, learner, _ = build(cfg)
    initial = snapshot(weights(learner.net))
    found = fresh_noise(sequence, learner, shrink=0.25, sigma=0.5)
    reseed(derive(3, "shrink_perturb", 1))
    new = weights(build_net(cfg, sequence))
    assert found.keys() == new.keys()
    for name, noise in found.items():
        torch.testing.assert_close(noise, new[name].detach().double(), rtol=1e-8, atol=1e-12)
        assert not new[name].any() or not torch.equal(new[name], initial[name])


def test_fresh_noise_has_the_scale_of_the_initial_weights(composed):
    """The embeddings of gpt_small have the standard deviation 0.02, and not the 1 of a torch embedding."""
    small = ("data.examples_per_task=8", "net.layers=1", "net.dropout=0")
    sequence, learner, _ = build(composed("data=text_domains", "net=gpt_small", "scenario=domain", *small))
    found = fresh_noise(sequence, learner, shrink=0.5, sigma=0.1)
    assert found["net.body.tokens.weight"].std().item() == pytest.approx(0.02, rel=0.05)


def test_fresh_noise_does_not_disturb_the_random_states(composed):
    """With sigma=0 the net is built and not added: the run equals that with normal noise, bit for bit."""
    states = []
    for noise in ("normal", "fresh"):
        sequence, learner, _ = build(composed("data=split_digits", "net.dropout=0.3"))
        torch.manual_seed(0)
        for index, strategy in enumerate([ShrinkPerturb(sigma=0.0, noise=noise)] * 2):
            trainer([strategy]).fit(learner, datamodule=sequence[index])
        states.append({**learner.state_dict(), "random": torch.get_rng_state()})
    assert_same(*states)


def test_fresh_noise_is_refused_without_a_new_net():
    with pytest.raises(ConfigError, match="noise=fresh: expected a Learner with fresh_net, .* got Net without it"):
        trainer([ShrinkPerturb(noise="fresh")], precision="64-true").fit(Net(), batches(0))


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
    [
        ({"shrink": 1.1}, r"shrink=1.1: expected a number in \[0, 1\]"),
        ({"sigma": -1}, "sigma=-1: expected a finite"),
        ({"noise": "new"}, "noise=new: expected one of normal, fresh"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ShrinkPerturb(**options)
