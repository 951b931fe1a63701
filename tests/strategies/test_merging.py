"""Weight merging. tests/training/test_checkpointing.py resumes it inside a task."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from clbench import Merging
from clbench.errors import ConfigError
from clbench.params import snapshot
from tests.strategies.test_penalty import assert_same
from tests.strategies.test_si import Net, examples, fit

EQUAL = {"weighting": "equal"}


def forward(module, batch):
    return module.heads[module.task](module.body(batch[0]).tanh()), batch[1]


def exact_fisher(module, task):
    """Return the Fisher of a task by a loop over examples and classes; 0 for an unused head."""
    params = dict(module.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    x, y = examples(task)
    for i in range(len(x)):
        z = forward(module, (x[i : i + 1], y[i : i + 1]))[0]
        for label, probability in enumerate(z.softmax(1)[0].tolist()):
            loss = cross_entropy(z, torch.tensor([label]))
            grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
            for n, g in zip(params, grads, strict=True):
                if g is not None:
                    total[n] += probability * g**2 / len(x)
    return total


def by_hand(weights, start, tasks):
    """Return the merged weights after each task. Head 1 is used in the last task."""
    module = Net()
    params = dict(module.named_parameters())
    begin, past, merged = snapshot(params), [], []
    for task in range(tasks):
        module.task = int(task == tasks - 1)
        steps = module.optimizer(module.parameters())
        for _ in range(3):
            steps.zero_grad(set_to_none=True)
            module.loss(examples(task)).backward()
            steps.step()
        reached = snapshot(params)
        factor = exact_fisher(module, task)
        if weights == "equal":
            factor = {n: (p != begin[n]).double() for n, p in reached.items()}
        past.append((factor, reached))
        total = {n: sum(f[n] for f, _ in past) for n in params}
        mean = {n: sum(f[n] * a[n] for f, a in past) / total[n] for n in params}
        merged.append({n: torch.where(total[n] > 0, mean[n], reached[n]) for n in params})
        begin = reached if start == "last" else begin
        with torch.no_grad():
            for n, p in params.items():
                p.copy_(begin[n])
    return merged


@pytest.mark.parametrize("weights", ["equal", "fisher"])
@pytest.mark.parametrize("start", ["last", "initial"])
def test_three_tasks_equal_a_loop(weights, start):
    module, strategy = Net(), Merging(weights, start, outputs=forward)
    expected = by_hand(weights, start, 3)
    for task in range(3):
        module.task = int(task == 2)
        fit(module, strategy, task, size=32, max_epochs=3)
        for n, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[task][n], rtol=1e-8, atol=1e-12)
    assert (strategy.penalty.importance["heads.1.weight"] > 0).all()


def test_a_head_that_one_task_has_used_is_not_averaged():
    module, strategy = Net(), Merging("equal")
    fit(module, strategy)
    head = module.heads[0].weight.detach().clone()
    module.task = 1
    fit(module, strategy, task=1)
    assert torch.equal(module.heads[0].weight, head)


@pytest.mark.parametrize("options", [EQUAL, {"start": "initial"}])
def test_state_dict_restores_the_mean_and_the_start(options):
    module, first, second = Net(), *(Merging(outputs=forward, **options) for _ in range(2))
    fit(module, first)
    fit(module, first, task=1)
    second.load_state_dict(first.state_dict())
    weights, after = snapshot(module.state_dict()), []
    for strategy in (first, second):
        module.load_state_dict(weights)
        fit(module, strategy, task=2)
        after.append(snapshot(module.state_dict()))
    assert_same(*after)


@pytest.mark.parametrize("name", ["imm_mean", "fisher_merging"])
def test_a_stopped_run_resumes_bit_for_bit(run, name):
    command = (f"strategy={name}", "data.tasks=3", "data.examples_per_task=60", "epochs=2")
    whole = run(*command, folder="whole")
    run(*command, "stop_after_task=2", folder="parts")
    assert run(*command, folder="parts")["accuracy_matrix"] == whole["accuracy_matrix"]


@pytest.mark.parametrize("options", [{"weighting": "mode"}, {"start": "merged"}, {"every": 5}, {"keep_previous": True}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigError, match="expected"):
        Merging(**options)
