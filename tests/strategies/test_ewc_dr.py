"""EWC-DR: the importance of negated logits, and the choices of the authors' code one by one and together."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, EWCDR
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.strategies import Strategy
from clbench.strategies.ewc_dr import running_mean
from tests import references
from tests.conftest import trainer
from tests.strategies.test_penalty import Plain

SIZES = [3, 2, 4]
DIGITS = (
    *("data=split_digits", "scenario=class", "data.tasks=3", f"data.split.classes_per_task={SIZES}".replace(" ", "")),
    *("data.examples_per_task=24", "data.validation=0", "batch_size=24", "steps=4", "optimizer=sgd", "lr=0.3"),
    *("net.hidden=[6]", "net.activation=tanh", "strategy=finetune"),
)


def tensors(n=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator, dtype=torch.double), torch.randint(3, (n,), generator=generator)


def measured(strategy):
    """Return the module and its importance on 12 examples."""
    module = Plain().double()
    strategy.consolidate(module, DataLoader(TensorDataset(*tensors()), batch_size=5))
    return module, strategy.penalty.importance


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)


def test_the_importance_is_a_loop_over_negated_logits():
    module, found = measured(EWCDR())
    close(found, references.fisher(module, *tensors(), labels="reversed"))


def test_fisher_batch_squares_the_mean_gradient_of_a_group():
    module, found = measured(EWCDR(fisher_batch=12))
    x, y = tensors()
    gradient = references.gradients(
        module, sum(cross_entropy(-module(x[i : i + 1]), y[i : i + 1]) for i in range(12)) / 12
    )
    close(found, {name: g.square() for name, g in gradient.items()})


def test_max_importance_cuts_each_importance():
    _, whole = measured(EWCDR())
    _, found = measured(EWCDR(max_importance=0.01))
    assert max(f.max() for f in whole.values()) > 0.01 > min(f.max() for f in whole.values())
    close(found, {name: f.clamp(max=0.01) for name, f in whole.items()})


@pytest.mark.parametrize(("combine", "shares"), [("sum", (1, 1, 1)), ("mean", (2 / 6, 1 / 6, 3 / 6))])
def test_tasks_are_added_or_averaged_by_their_classes(composed, combine, shares):
    """The output layer is left out, because its rows are not of the same number of tasks."""
    sizes = "data.split.classes_per_task=[2,1,3]"
    sequence, learner, _ = build(composed(*DIGITS, sizes, "scenario=class"))
    strategy, parts = EWCDR(lam=0.0, combine=combine, exclude=["*.head.*"]), []
    for task in sequence:
        trainer([strategy]).fit(learner, datamodule=task)
        alone = EWCDR(exclude=["*.head.*"])
        alone.consolidate(learner, task.importance_dataloader())
        parts.append(alone.penalty.importance)
    expected = {n: sum(w * part[n] for w, part in zip(shares, parts, strict=True)) for n in parts[0]}
    for name, value in expected.items():
        torch.testing.assert_close(strategy.penalty.importance[name], value)


def test_without_a_sequence_the_mean_counts_tasks_equally():
    parts, strategy, module = [], EWCDR(combine="mean"), Plain().double()
    for k in range(3):
        x, y = tensors(5 + k)
        strategy.consolidate(module, [(x, y)])
        parts.append(references.fisher(module, x, y, labels="reversed"))
    body = {name: sum(part[name] for part in parts) / 3 for name in ("body.weight", "body.bias")}
    close({name: strategy.penalty.importance[name] for name in body}, body)


def test_a_row_without_importance_starts_with_the_new_one():
    old = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert running_mean(old, torch.full((2, 2), 3.0), 0.5).tolist() == [[2.0, 1.5], [3.0, 3.0]]
    assert running_mean(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 3.0]), 0.5).tolist() == [2.0, 3.0]


def test_new_classes_are_trained_and_all_seen_are_measured(composed):
    """Float64, exact, against a loop over examples and the outputs of all classes seen."""
    sequence, learner, _ = build(composed(*DIGITS, "train_classes=new"))
    for task in list(sequence)[:2]:
        trainer([Strategy()], precision="64-true").fit(learner, datamodule=task)
    batch = next(iter(task.importance_dataloader()))
    weight = learner.net.head.linear.weight
    expected = torch.zeros_like(weight)
    for x, y in zip(batch.x.double(), batch.y, strict=True):
        loss = cross_entropy(-learner.net.head.linear(learner.net.body(x[None]))[:, :5], y[None])
        expected += torch.autograd.grad(loss, weight)[0].square() / len(batch.y)
    dr, ewc = EWCDR(), EWC(fisher="reversed")
    for strategy in (dr, ewc):
        strategy.consolidate(learner, [batch._replace(x=batch.x.double())])
    torch.testing.assert_close(dr.penalty.importance["net.head.linear.weight"], expected)
    assert expected[:5].any(1).all()
    assert not ewc.penalty.importance["net.head.linear.weight"][:3].any()


def by_hand(learner, tasks, lam, limit, steps, lr):
    """Compute the update of the authors' code for tasks of one batch each, with an output layer that grows."""
    body, first = deepcopy(learner.net.body), learner.net.head.linear
    weight, bias = first.weight.detach().clone(), first.bias.detach().clone()
    omega, mean, known = {}, {}, 0
    for (x, y), new in zip(tasks, SIZES, strict=True):
        seen = known + new
        head = nn.Linear(first.in_features, seen).double()
        with torch.no_grad():
            head.weight.copy_(weight[:seen])
            head.bias.copy_(bias[:seen])
        net = nn.Sequential(body, head)
        params = dict(net.named_parameters())
        for _ in range(steps):
            loss = cross_entropy(net(x)[:, known:], y - known)
            for n, f in omega.items():
                loss = loss + lam / 2 * (f * (params[n][: len(f)] - mean[n]) ** 2).sum()
            grads = torch.autograd.grad(loss, list(params.values()))
            with torch.no_grad():
                for p, g in zip(params.values(), grads, strict=True):
                    p -= lr * g
        found = references.gradients(net, cross_entropy(-net(x), y))
        found = {n: torch.minimum(g.square(), torch.tensor(limit, dtype=g.dtype)) for n, g in found.items()}
        for n, f in omega.items():
            found[n][: len(f)] = known / seen * f + (1 - known / seen) * found[n][: len(f)]
        omega, mean, known = found, {n: p.detach().clone() for n, p in params.items()}, seen
        with torch.no_grad():
            weight[:seen], bias[:seen] = head.weight, head.bias
    return omega, mean


def test_all_choices_together_are_the_update_of_the_authors(composed):
    """Three tasks of 3, 2 and 4 classes, in float64."""
    sequence, learner, _ = build(composed(*DIGITS, "train_classes=new"))
    learner = learner.double()
    learner.net.body.register_forward_pre_hook(lambda body, inputs: (inputs[0].double(),))
    tasks = [(batch.x, batch.y) for task in sequence for batch in task.importance_dataloader()]
    omega, mean = by_hand(learner, tasks, lam=40.0, limit=1e-3, steps=20, lr=0.3)
    strategy = EWCDR(lam=40.0, fisher_batch=128, max_importance=1e-3, combine="mean")
    for task in sequence:
        trainer([strategy], max_epochs=20).fit(learner, datamodule=task)
    names = {n: f"net.body.{n[2:]}" if n.startswith("0.") else f"net.head.linear.{n[2:]}" for n in omega}
    assert len(omega) == len(strategy.penalty.importance)
    for n, name in names.items():
        torch.testing.assert_close(strategy.penalty.importance[name], omega[n], rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(strategy.penalty.anchor[name], mean[n], rtol=1e-8, atol=1e-12)
    cut = torch.cat([f.flatten() for f in omega.values()])
    assert 0.02 < (cut == 1e-3).double().mean() < 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_importance": 0.0}, "max_importance=0.0: expected a finite number > 0"),
        ({"combine": "max"}, "combine=max: expected one of sum, mean"),
        ({"data": "test"}, "data=test: expected train or validation, because the importance of EWCDR reads labels"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EWCDR(**options)


def test_a_run_with_all_choices_resumes_bit_for_bit(run):
    options = (
        "strategy=ewc_dr",
        "fisher_batch=128",
        "strategy.max_importance=1e-4",
        "strategy.combine=mean",
        "lam=1e4",
    )
    command = (*DIGITS[:-1], *options, "train_classes=new")
    whole = run(*command, folder="whole")
    run(*command, "stop_after_task=2", folder="parts")
    assert run(*command, folder="parts")["accuracy_matrix"] == whole["accuracy_matrix"]
