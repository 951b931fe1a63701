"""RWalk against a loop over steps and parameters. tests/training/test_checkpointing.py resumes it inside a task."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from clbench import RWalk
from clbench.errors import ConfigError
from clbench.params import snapshot
from clbench.strategies import Strategy
from clbench.strategies.rwalk import normalised
from tests.strategies.test_penalty import Plain, assert_same, learn
from tests.strategies.test_si import DECAYING, OPTIMIZERS, Net, batches, fit

CASES = {**OPTIMIZERS, "decaying": partial(DECAYING, lr=0.1)}


def by_hand(optimizer, lam, tasks, epochs, interval, alpha=0.9, damping=1e-3, code=False):
    """Compute RWalk over ``tasks``, number by number. Return the importance, and how often a score was negative.

    With ``code``, the distance, the average over tasks and the scale are those of the authors' code.
    """
    module = Net(optimizer)
    params = dict(module.named_parameters())
    fisher, scores, importance, anchor, negative = {}, {}, {}, {}, 0
    for task in range(tasks):
        steps, taken = module.optimizer(module.parameters()), 0
        decrease, squares = ({n: torch.zeros_like(p) for n, p in params.items()} for _ in range(2))
        before_interval, new = snapshot(params), {n: torch.zeros_like(p) for n, p in params.items()}
        number, total = 0, epochs * len(batches(task))
        for batch in [batch for _ in range(epochs) for batch in batches(task)]:
            grads = torch.autograd.grad(module.loss(batch), list(params.values()), allow_unused=True)
            before = snapshot(params)
            for (n, p), g in zip(params.items(), grads, strict=True):
                if g is not None:
                    fisher.setdefault(n, g**2)
                    pull = lam * importance[n] * (p.detach() - anchor[n]) if task else 0
                    p.grad = g + pull
            steps.step()
            for (n, p), g in zip(params.items(), grads, strict=True):
                if g is not None:
                    decrease[n] -= g * (p.detach() - before[n])
                    squares[n] += g**2
            number, taken = number + 1, taken + 1
            if number == interval or taken == total:
                for n, f in fisher.items():
                    moved = params[n].detach() - before_interval[n]
                    score = decrease[n] / (f * moved**2 / (1 if code else 2) + damping)
                    negative += int((score < 0).sum())
                    new[n] += torch.relu(score)
                    fisher[n] = alpha * squares[n] / number + (1 - alpha) * f
                    decrease[n], squares[n] = torch.zeros_like(f), torch.zeros_like(f)
                before_interval, number = snapshot(params), 0
        scores = {n: (scores[n] + new[n]) / 2 + (scores[n] if code else 0) if task else new[n] for n in params}
        importance = {n: torch.zeros_like(p) for n, p in params.items()}
        for part in ({n: fisher.get(n, 0 * s) for n, s in scores.items()}, scores):
            entries = torch.cat([v.flatten() for v in part.values()])
            smallest = entries.min() if code else 0
            for n, v in part.items():
                importance[n] += (v - smallest) / (entries.max() - smallest)
        anchor = snapshot(params)
    return importance, anchor, negative


@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_three_tasks_equal_a_loop(name, interval, code):
    """With interval=3 the 8 steps of a task are two intervals and a shorter one. The second head is never used."""
    options = {"combine": "added_mean", "normalize": "range", "damping": 5e-4} if code else {}
    module, strategy = Net(CASES[name]), RWalk(lam=5.0, interval=interval, **options)
    for task in range(3):
        fit(module, strategy, task, max_epochs=2)
    importance, anchor, negative = by_hand(CASES[name], lam=5.0, tasks=3, epochs=2, interval=interval, code=code)
    assert importance.keys() == strategy.penalty.importance.keys()
    for n, expected in importance.items():
        torch.testing.assert_close(strategy.penalty.importance[n], expected, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(strategy.penalty.anchor[n], anchor[n], rtol=1e-8, atol=1e-12)
    assert negative > 0 or name != "decaying"
    assert not strategy.penalty.importance["heads.1.weight"].any()


def test_both_parts_are_in_the_unit_interval():
    found = normalised({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([[4.0]]), "c": torch.zeros(0)})
    assert found["a"].tolist() == [0.0, 0.5] and found["b"].tolist() == [[1.0]]
    assert normalised({"a": torch.zeros(2)})["a"].tolist() == [0.0, 0.0]
    found = normalised({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}, subtract=True)
    assert found["a"].tolist() == [0.0, 0.25] and found["b"].tolist() == [1.0]
    module, strategy = Net(), RWalk()
    fit(module, strategy)
    assert 1 <= max(f.max() for f in strategy.penalty.importance.values()) <= 2


def test_accumulated_gradients_are_one_step():
    importances = []
    for size, accumulate in ((8, 1), (2, 4)):
        strategy = RWalk(interval=2)
        fit(Net(), strategy, size=size, accumulate_grad_batches=accumulate)
        importances.append(strategy.penalty.importance)
    for n, f in importances[0].items():
        torch.testing.assert_close(importances[1][n], f)


def test_clipping_changes_the_movement_and_not_the_gradient():
    """One step with a large epsilon: the score is the decrease of the loss, clipped, over epsilon."""
    found = []
    for clip in (None, 0.05):
        module, strategy = Net(), RWalk(damping=1e6)
        fit(module, strategy, size=32, gradient_clip_val=clip)
        found.append((strategy._fisher, strategy._scores))
    (f, s), (f_clipped, s_clipped) = found
    assert_same(f, f_clipped)
    factor = 0.05 / sum(v.sum() for v in f.values()).sqrt()
    for n in s:
        torch.testing.assert_close(s_clipped[n], factor * s[n], rtol=1e-4, atol=1e-14)


def test_state_dict_restores_fisher_and_scores_between_tasks():
    module, first, second = Net(), RWalk(lam=2.0), RWalk(lam=2.0)
    fit(module, first)
    second.load_state_dict(first.state_dict())
    weights, after = snapshot(module.state_dict()), []
    for strategy in (first, second):
        module.load_state_dict(weights)
        fit(module, strategy, task=1)
        after.append({**module.state_dict(), **{f"importance {n}": f for n, f in strategy.penalty.importance.items()}})
    assert_same(*after)


def test_a_frozen_parameter_keeps_half_of_its_score():
    module, strategy = Net(), RWalk()
    fit(module, strategy)
    fisher, scores = strategy._fisher["body.weight"], strategy._scores["body.weight"]
    module.body.weight.requires_grad_(False)
    fit(module, strategy, task=1)
    assert torch.equal(strategy._fisher["body.weight"], fisher)
    assert torch.equal(strategy._scores["body.weight"], scores / 2)


def test_a_grown_head_keeps_its_fisher_and_scores():
    module, strategy = Net(), RWalk(grow="rows")
    fit(module, strategy)
    scores = strategy._scores["heads.0.weight"]
    old, module.heads[0] = module.heads[0], nn.Linear(8, 4).double()
    with torch.no_grad():
        module.heads[0].weight[:3], module.heads[0].bias[:3] = old.weight, old.bias
    fit(module, strategy, task=1)
    assert strategy._scores["heads.0.weight"].shape == (4, 8)
    assert (strategy._scores["heads.0.weight"][:3] >= scores / 2).all()


def test_the_kept_state_is_four_tensors_per_parameter():
    strategy = RWalk()
    module = Net()
    fit(module, strategy)
    fit(module, strategy, task=1)
    used = sum(p.numel() for n, p in module.named_parameters() if not n.startswith("heads.1"))
    assert strategy.cost()["bytes"] == 8 * (2 * sum(p.numel() for p in module.parameters()) + 2 * used)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_lam_0_is_fine_tuning_bit_for_bit(optimizer):
    module = learn(Plain(optimizer, 1e-2), RWalk(lam=0.0), carry=True)
    assert_same(module, learn(Plain(optimizer, 1e-2), Strategy(), carry=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1.5: expected a number in \[0, 1\]"),
        ({"interval": 0}, "interval=0: expected an integer >= 1"),
        ({"damping": 0.0}, "damping=0.0: expected a finite number > 0"),
        ({"combine": "sum"}, "combine=sum: expected one of mean, added_mean"),
        ({"normalize": "min"}, "normalize=min: expected one of max, range"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RWalk(**options)
