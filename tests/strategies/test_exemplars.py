"""Herding, class means, and predictions by the nearest mean, against loops in float64."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

import clbench
from clbench import ER, ICaRL, NearestMean
from clbench.data import Batch
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.strategies import Strategy
from clbench.strategies.exemplars import class_means, closeness, herded, herding
from clbench.strategies.icarl import icarl_loss
from tests.conftest import stopped_after, trainer

DIGITS = ("data=split_digits", "data.tasks=null", "data.split.classes_per_task=[2,2,2]", "data.examples_per_task=50")
SHORT = (*DIGITS, "epochs=1", "net.hidden=[16]")


def features(n: int, f: int = 4, seed: int = 0) -> Tensor:
    """Return normalised features (n, f) in float64."""
    x = torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return x / x.norm(dim=1, keepdim=True)


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def herding_by_loops(phi: Tensor, number: int, normalized: bool = True) -> list[int]:
    """Algorithm 4 of Rebuffi et al. 2017, with averages normalised to length 1, or as they are."""
    scaled = unit if normalized else lambda average: average
    mean, chosen = scaled(phi.sum(0) / len(phi)), []
    for k in range(1, min(number, len(phi)) + 1):
        best, smallest = -1, math.inf
        for x in range(len(phi)):
            if x not in chosen:
                average = scaled((phi[x] + sum((phi[p] for p in chosen), torch.zeros_like(mean))) / k)
                if (distance := (mean - average).norm().item()) < smallest:
                    best, smallest = x, distance
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("number", [1, 5, 12, 99])
@pytest.mark.parametrize("seed", range(5))
def test_herding_equals_the_double_loop(number, seed, normalized):
    phi = features(12, seed=seed)
    assert herding(phi, number, normalized).tolist() == herding_by_loops(phi, number, normalized)


def test_herding_without_normalised_averages_differs():
    phi = features(30)
    assert herding(phi, 10).tolist() != herding(phi, 10, normalize_averages=False).tolist()


def test_fewer_exemplars_are_the_first_of_more():
    phi = features(30)
    assert herding(phi, 20)[:7].equal(herding(phi, 7))


def test_herding_is_closer_to_the_mean_than_a_random_choice():
    phi = features(200, seed=3)
    mean = unit(phi.sum(0))
    herded_gap = (unit(phi[herding(phi, 10)].sum(0)) - mean).norm()
    random_gaps = [(unit(phi[torch.randperm(200)[:10]].sum(0)) - mean).norm() for _ in range(20)]
    assert herded_gap < min(random_gaps)


def test_equal_features_are_chosen_once_each():
    assert sorted(herding(torch.ones(4, 1), 4).tolist()) == [0, 1, 2, 3]


def test_every_class_is_herded_alone():
    phi, classes = features(20), torch.arange(20) % 3
    for label, chosen in enumerate(herded(phi, classes, 4)):
        rows = (classes == label).nonzero()[:, 0]
        assert chosen.tolist() == rows[herding_by_loops(phi[rows], 4)].tolist()


def test_the_nearest_mean_equals_the_loop():
    phi, classes, x = features(20), torch.arange(20) % 3, features(40, seed=1)
    means = class_means(phi, classes, 4)
    scores = closeness(x, means)
    expected = [unit(sum(phi[i] for i in range(20) if classes[i] == c)) for c in range(3)]
    torch.testing.assert_close(means[:3], torch.stack(expected))
    assert means[3].isnan().all() and scores[:, 3].eq(-math.inf).all()
    for i in range(40):
        distances = [(x[i] - mean).norm().item() for mean in expected]
        assert scores[i].argmax().item() == distances.index(min(distances))
    each = closeness(x, means.expand(40, -1, -1))
    torch.testing.assert_close(each, scores)


@pytest.mark.parametrize("old", [0, 3])
def test_the_loss_of_icarl_equals_the_loop(old):
    z, y, q = torch.randn(6, 5, dtype=torch.double), torch.tensor([0, 4, 3, 1, 4, 2]), torch.rand(6, old).double()
    total = 0.0
    for i in range(6):
        for c in range(5):
            target, p = (q[i, c] if c < old else float(y[i] == c)), z[i, c].sigmoid()
            total -= target * p.log() + (1 - target) * (1 - p).log()
    torch.testing.assert_close(icarl_loss(z, y, q if old else None), total / 6)


def learned(strategy, sequence, learner, tasks=3, **options):
    for index in range(tasks):
        trainer([strategy], **options).fit(learner, datamodule=strategy.training_data(sequence, index))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_icarl_keeps_equal_numbers_and_cuts_the_lists(composed, scenario):
    sequence, learner, _ = build(composed(*DIGITS, f"scenario={scenario}"))
    icarl, kept = ICaRL(memory_total=21), []
    for index in range(3):
        task = icarl.training_data(sequence, index)
        trainer([icarl]).fit(learner, datamodule=task)
        kept.append(icarl.exemplars)
        assert task.examples == 50 + (0 if index == 0 else sum(len(e) for classes in kept[index - 1] for e in classes))
    assert [[len(e) for classes in lists for e in classes] for lists in kept] == [[10] * 2, [5] * 4, [3] * 6]
    assert all(new.equal(old[: len(new)]) for new, old in zip(kept[2][0], kept[0][0], strict=True))
    for index, classes in enumerate(icarl.exemplars):
        labels = sequence[index].labels
        assert [labels[each].unique().tolist() for each in classes] == [[c] for c in labels.unique().tolist()]


def test_icarl_can_choose_by_averages_that_are_not_normalised(composed):
    sequence, learner, _ = build(composed(*DIGITS, "scenario=class"))
    icarl = ICaRL(memory_total=60, normalize_averages=False)
    learned(icarl, sequence, learner, tasks=1)
    x = torch.cat([batch.x for batch in sequence[0].importance_dataloader()])
    phi, labels = torch.nn.functional.normalize(learner.net.body(x).detach()), sequence[0].labels
    for label, chosen in enumerate(icarl.exemplars[0]):
        rows = (labels == label).nonzero()[:, 0]
        assert chosen.tolist() == rows[herding_by_loops(phi[rows], 30, normalized=False)].tolist()
        assert chosen.tolist() != rows[herding_by_loops(phi[rows], 30)].tolist()


@pytest.mark.parametrize(
    ("scenario", "reduction", "classes"),
    [("task", "sum", 1), ("class", "sum", 1), ("task", "mean", 4), ("class", "mean", 4)],
)
def test_a_step_of_icarl_follows_the_formula(composed, scenario, reduction, classes):
    """The loss of a step on new examples and exemplars is that of a loop over the outputs of single nets."""
    sequence, learner, _ = build(composed(*DIGITS, f"scenario={scenario}"))
    icarl, found = ICaRL(memory_total=60, class_reduction=reduction), []
    learned(icarl, sequence, learner, tasks=1)

    def loss(outputs, y):
        result = original(outputs, y)  # first, because the loop also stores features
        batch, old, net = icarl._batch, icarl.old, learner.net
        z, q = [], []
        for i in range(len(y)):
            x = batch.x[i : i + 1]
            contexts = (0, 1) if scenario == "task" else (1,)
            z.append(torch.cat([net(x, k)[0] for k in contexts]))
            q.append(old(x, 0)[0].sigmoid())
        task = batch.task if torch.is_tensor(batch.task) else torch.zeros_like(y)
        labels = y + 2 * task if scenario == "task" else y
        found.append((result.item(), icarl_loss(torch.stack(z), labels, torch.stack(q)).item() / classes, labels))
        return result

    class Watch(clbench.strategies.Strategy):
        def on_train_start(self, trainer, pl_module):
            nonlocal original
            original, learner.weigh = learner.weigh, loss

    original = None
    trainer([icarl, Watch()]).fit(learner, datamodule=icarl.training_data(sequence, 1))
    assert torch.cat([labels for *_, labels in found]).bincount().gt(10).all()
    for got, expected, _ in found:
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [ICaRL, NearestMean, lambda: NearestMean(memory_fill="stream")])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_predictions_are_the_nearest_mean_of_the_examples(composed, make, scenario):
    sequence, learner, _ = build(composed(*DIGITS, f"scenario={scenario}"))
    strategy = make()
    if scenario == "domain" and isinstance(strategy, ICaRL):
        return
    learned(strategy, sequence, learner)
    learner.eval()
    width = 6 if scenario == "class" else 2
    groups: dict[int, list[Tensor]] = {}
    for x, numbers in strategy.stored():
        for each, number in zip(x, numbers.tolist(), strict=True):
            groups.setdefault(number, []).append(unit(learner.net.body(each[None])[0].detach()))
    means = {number: unit(torch.stack(of).sum(0)) for number, of in groups.items()}
    assert sorted(means) == list(range(2 if scenario == "domain" else 6))
    batch = next(iter(sequence[2].test_dataloader()[1]))
    scores = strategy.predict(learner, batch)
    assert scores.shape == (len(batch.y), width)
    first = 2 if scenario == "task" else 0
    for i in range(20):
        phi = unit(learner.net.body(batch.x[i : i + 1])[0].detach())
        expected = torch.stack([means[first + c] @ phi for c in range(width)])
        torch.testing.assert_close(scores[i].detach(), expected, atol=1e-5, rtol=1e-5)


def test_the_memory_of_nearest_mean_is_herded(composed):
    sequence, learner, _ = build(composed(*DIGITS, "scenario=class"))
    strategy = NearestMean(memory_total=12)
    learned(strategy, sequence, learner, tasks=1)
    examples, task = strategy.memory.examples, sequence[0]
    x = torch.cat([batch.x for batch in task.importance_dataloader()])
    phi = torch.nn.functional.normalize(learner.net.body(x).detach())
    for label, chosen in enumerate(herded(phi, task.labels, 6)):
        assert examples["x"][examples["y"] == label].equal(x[chosen])
    learned(strategy, sequence, learner)
    assert strategy.memory.examples["y"].bincount().tolist() == [2] * 6


def test_nearest_mean_trains_as_er_does(composed):
    states = []
    for make in (ER, NearestMean):
        sequence, learner, _ = build(composed(*DIGITS, "scenario=class", "seed=1"))
        torch.manual_seed(0)
        learned(make(memory_fill="stream"), sequence, learner)
        states.append(learner.state_dict())
    assert all(a.equal(b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize("strategy", ["icarl", "nearest_mean"])
def test_likelihood_and_calibration_are_null(run, tmp_path, strategy):
    metrics = run(f"strategy={strategy}", "scenario=class", *SHORT)
    written = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    for each in (metrics, written):
        assert all(task["nll"] is None and task["ece"] is None and task["accuracy"] >= 0 for task in each["per_task"])


@pytest.mark.parametrize("strategy", ["icarl", "nearest_mean"])
def test_evaluations_inside_a_task_use_the_current_net(run, tmp_path, strategy):
    """They change nothing, and before the first task has ended the outputs of the net decide."""
    options = (f"strategy={strategy}", "scenario=task", *SHORT)
    plain, watched = run(*options, folder="a"), run(*options, "eval_every=1", folder="b")
    assert plain["accuracy_matrix"] == watched["accuracy_matrix"]
    assert watched["initial_accuracy"] == plain["initial_accuracy"]
    folder = stopped_after(1, tmp_path / "b", tmp_path / "again")
    again = clbench.run([*options, "eval_every=1", "trainer=cpu"], folder)
    assert again["within_tasks"] == watched["within_tasks"]
    assert again["accuracy_matrix"] == watched["accuracy_matrix"]


def test_a_loaded_run_predicts_as_it_was_evaluated(run, tmp_path):
    metrics = run("strategy=icarl", "scenario=class", *SHORT)
    loaded = clbench.load(tmp_path / "run")
    loader = loaded.sequence[2].test_dataloader()[1]
    right = [loaded.strategy.predict(loaded.learner, batch).argmax(1) == batch.y for batch in loader]
    assert torch.cat(right).double().mean().item() == metrics["accuracy_matrix"][2][1]


class Constant(Strategy):
    """Predicts class 0."""

    def predict(self, learner, batch):
        return torch.nn.functional.one_hot(torch.zeros_like(batch.y), 2)


def test_a_strategy_decides_how_a_batch_is_predicted(run, composed):
    target = "strategy._target_=tests.strategies.test_exemplars.Constant"
    metrics = run("strategy=finetune", target, "scenario=task", *SHORT)
    sequence = build(composed(*DIGITS, "scenario=task"))[0]
    shares = [batch.y.eq(0).double().mean().item() for task in sequence for batch in [whole(task)]]
    assert metrics["accuracy_matrix"] == [pytest.approx(shares)] * 3
    assert metrics["per_task"][0]["nll"] is None  # nothing declares that the scores are logits


def whole(task) -> Batch:
    (batch,) = task.test_dataloader()[task.index]
    return batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("strategy=icarl", "scenario=domain"),
            "iCaRL learns new classes: expected scenario=class or task, got domain",
        ),
        (
            ("strategy=icarl", "strategy.memory_total=5"),
            "strategy.memory_total=5: expected at least one exemplar for each of",
        ),
        (("strategy=icarl", "memory=1"), "memory=1: expected at least one exemplar for each of 6 classes, got 3"),
        (("strategy=icarl", "scenario=class", "data.blur=0.2"), "needs batches of one task"),
        (("strategy=icarl", "scenario=class", "scenario.train_classes=new"), "train_classes=new: expected seen or all"),
        (("strategy=icarl", "compile=true"), "iCaRL has a loss of its own"),
        (("strategy=icarl", "strategy.class_reduction=max"), "class_reduction=max: expected one of sum, mean"),
        (("strategy=icarl", "strategy.normalize_averages=1"), "normalize_averages=1: expected true or false"),
        (("strategy=nearest_mean", "data.blur=0.2"), "strategy.memory_fill=herding: expected blur=0"),
        (
            ("strategy=nearest_mean", "strategy.buffer=ring"),
            "memory_fill=herding with strategy.buffer=ring: expected a",
        ),
        (("strategy=er", "strategy.memory_fill=herding"), "memory_fill=herding: expected one of stream, end"),
    ],
)
def test_what_makes_no_sense_is_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options[:1], *SHORT, *options[1:])


@pytest.mark.parametrize("strategy", ["icarl", "nearest_mean"])
def test_other_targets_than_one_label_are_refused(run, strategy):
    with pytest.raises(ConfigError, match="expected one label per example, got several labels"):
        run("data=two_digits", f"strategy={strategy}", "scenario=task")


def test_icarl_refuses_a_task_without_exemplars(composed):
    sequence, learner, _ = build(composed(*DIGITS, "scenario=class"))
    icarl = ICaRL()
    learned(icarl, sequence, learner, tasks=1)
    with pytest.raises(ConfigError, match=r"Fit strategy.training_data\(sequence, 1\), not sequence\[1\]"):
        trainer([icarl]).fit(learner, datamodule=sequence[1])


@pytest.mark.parametrize("make", [ICaRL, NearestMean])
def test_a_net_without_a_head_is_refused_before_training(composed, make):
    sequence, learner, _ = build(composed(*DIGITS, "scenario=class"))
    learner.net = torch.nn.Flatten()
    with pytest.raises(ConfigError, match="expected a clbench.nets.Net of body and head, got Flatten"):
        trainer([make()]).fit(learner, datamodule=sequence[0])
