"""GEM: the projected gradient is the nearest one that increases the loss on no earlier task."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clbench.errors import ConfigError
from clbench.strategies import GEM, agem
from clbench.strategies.gem import multipliers, project
from tests.conftest import trainer
from tests.strategies.test_baselines import SCENARIOS, learn, learner, sequence

SHAPES = ((3, 4), (5,))


def random_gradients(generator, number):
    """Return ``number`` lists of tensors in float64, and the same as rows of a matrix."""
    found = [[torch.randn(s, generator=generator, dtype=torch.double) for s in SHAPES] for _ in range(number)]
    return found, rows(found)


def rows(gradients):
    return torch.stack([torch.cat([t.flatten() for t in each]) for each in gradients])


def nearest(g, references, margin=0.0):
    """Return g + G'v by trying every set of multipliers that are above ``margin``, the slow and obvious way."""
    best, tolerance = None, 1e-9
    shifted = g + margin * references.sum(0)
    for size in range(len(references) + 1):
        for active in map(list, combinations(range(len(references)), size)):
            chosen = references[active]
            v = -torch.linalg.pinv(chosen @ chosen.T) @ (chosen @ shifted)
            found = shifted + v @ chosen
            if (v >= -tolerance).all() and (references @ found >= -tolerance).all():
                distance = (found - shifted).norm()
                best = min(best or (distance, found), (distance, found), key=lambda pair: pair[0])
    return best[1]


def test_with_one_earlier_task_gem_is_a_gem():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        (g, r), _ = random_gradients(generator, 2)
        expected = [t.clone() for t in g]
        assert bool(project(g, [r])) == agem.project(expected, r)
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("tasks", [1, 2, 4, 6])
def test_gem_is_the_best_of_all_sets_of_constraints(tasks, margin):
    """The gradients are against each other, so that several constraints are active."""
    generator, numbers = torch.Generator().manual_seed(tasks), set()
    for _ in range(30):
        (g, *references), matrix = random_gradients(generator, tasks + 1)
        expected = nearest(matrix[0], matrix[1:], margin)
        added = project(g, references, margin)
        numbers.add(len(added))
        found = rows([g])[0]
        if added:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            assert (matrix[1:] @ found >= -1e-9).all()
        else:
            assert torch.equal(found, matrix[0])
            assert (matrix[1:] @ matrix[0] >= 0).all()
    assert max(numbers) >= min(tasks, 3)


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1.0, 1e20])
def test_a_singular_gram_matrix_and_any_norms_are_projected(size):
    """Two tasks have the same gradient, one has none, and one has the sum of two others."""
    generator = torch.Generator().manual_seed(1)
    (g, a, b), _ = random_gradients(generator, 3)
    zero = [torch.zeros_like(t) for t in a]
    references = [a, a, zero, b, [s + t for s, t in zip(a, b, strict=True)]]
    g = [-s - 0.5 * t + 0.1 * u for s, t, u in zip(a, b, g, strict=True)]
    expected = nearest(rows([g])[0], rows(references))
    single = [t.float() for t in g]
    assert project(single, [[t.float() * size for t in r] for r in references])
    torch.testing.assert_close(rows([single])[0], expected.float(), rtol=1e-4, atol=1e-5)
    assert project(g, references)
    torch.testing.assert_close(rows([g])[0], expected, rtol=1e-9, atol=1e-9)


def test_many_nearly_parallel_tasks_have_multipliers():
    """The Gram matrix of 60 gradients in 3 dimensions is singular."""
    random = np.random.default_rng(0)
    for _ in range(20):
        references = 1.0 + random.normal(size=(60, 3)) * 10.0 ** random.uniform(-9, 0)
        g = random.normal(size=3)
        v = multipliers(references @ references.T, references @ g)
        assert (v >= 0).all()
        assert (references @ (g + v @ references) >= -1e-6).all()


def test_a_gradient_that_is_not_finite_stays_so():
    gradient = [torch.tensor([1.0, -1.0])]
    project(gradient, [[torch.tensor([float("inf"), 1.0])]])
    assert gradient[0].isnan().all()


def test_a_gradient_against_no_task_is_not_changed():
    gradient = [torch.tensor([1.0, 2.0])]
    assert project(gradient, [[torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])]], margin=0.5) == []
    assert gradient[0].tolist() == [1, 2]


@SCENARIOS
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.01}, {"accumulate_grad_batches": 2}])
def test_no_step_is_against_the_gradient_of_an_earlier_task(scenario, options):
    """In real runs, on all stored examples of each task; clipping comes after the projection."""
    tasks, seen, before = sequence(scenario), [], []
    module, strategy = learner(tasks), GEM(memory=8)

    def products(pl_module, index):
        gradient, found = [p.grad for p in pl_module.parameters()], []
        for task in range(index):
            kept = {n: t[strategy.memory.slots_of(task)] for n, t in strategy.memory.examples.items()}
            assert kept["task"].tolist() == [task] * 8
            with torch.enable_grad():
                loss = cross_entropy(pl_module.net(kept["x"], task if scenario == "task" else index), kept["y"])
                reference = torch.autograd.grad(loss, list(pl_module.parameters()), allow_unused=True)
            pairs = [(g, r) for g, r in zip(gradient, reference, strict=True) if g is not None and r is not None]
            size = sum(r.square().sum() for _, r in pairs).sqrt()
            found.append((sum((g * r).sum() for g, r in pairs) / size).item())
        return found

    class Before(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            before.extend(products(pl_module, trainer.datamodule.index))

    class After(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.extend(products(pl_module, trainer.datamodule.index))

    strategy.attach(module, tasks)
    for task in tasks:
        trainer([Before(), strategy, After()], max_epochs=2, **options).fit(module, datamodule=task)
    assert len(seen) == 3 * 2 * 4 // options.get("accumulate_grad_batches", 1)
    assert min(before) < -1e-3
    assert min(seen) > -1e-5


def test_gem_leaves_the_heads_of_tasks_without_a_multiplier():
    """Their gradient stays None, so that momentum and weight decay do not move them."""
    tasks = sequence("task")
    decaying = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)
    module, strategy, added, given = learner(tasks, 0.1, decaying), GEM(memory=8), [], []
    original = strategy.project

    def project_and_record(gradient, references):
        added.append(original(gradient, references))
        return added[-1]

    class After(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.datamodule.index:
                heads = list(pl_module.net.head.heads)[: trainer.datamodule.index]
                given.append([k for k, head in enumerate(heads) if head.weight.grad is not None])

    strategy.project = project_and_record
    strategy.attach(module, tasks)
    for task in tasks:
        trainer([strategy, After()], max_epochs=3).fit(module, datamodule=task)
    assert given == added
    assert {(), (0,), (1,)} <= set(map(tuple, added[-12:]))  # in the third task


def test_gem_replays_all_examples_of_each_task_or_some():
    tasks = sequence("domain")
    for options, number in (({}, 8), ({"replay": 5}, 5)):
        strategy, module = GEM(memory=8, **options), learner(tasks)
        learn(tasks, module, strategy)
        assert [len(batch.y) for batch in strategy.old_batches()] == [number] * 2
        assert strategy.memory.filled.sum() == 24


def test_gem_refuses_a_negative_margin():
    with pytest.raises(ConfigError, match="^margin=-1: expected a finite number >= 0"):
        GEM(margin=-1)
