"""Every number of an evaluation compared with a loop over tasks, at the weights of that moment."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassCalibrationError

from clbench.data import Batch
from clbench.learner import Learner
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.metric import Metric
from clbench.metrics.registry import load_metrics, summarize
from clbench.nets import Net, mlp
from clbench.params import snapshot
from clbench.training.evaluation import Evaluation
from clbench.training.measures import measured
from tests.conftest import trainer
from tests.strategies.test_baselines import SCENARIOS, learner, sequence


class Keep(L.Callback):
    """Keeps copies of the net: before training, after every batch by (task, step), and after every task."""

    def __init__(self):
        self.inside, self.after = {}, []

    def on_train_start(self, trainer, pl_module):
        self.inside.setdefault("first", deepcopy(pl_module.net).eval())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.inside[trainer.datamodule.index, trainer.global_step] = deepcopy(pl_module.net).eval()

    def on_train_end(self, trainer, pl_module):
        self.after.append(deepcopy(pl_module.net).eval())


@torch.no_grad()
def evaluated(net, loader):
    """Return logits and labels of all examples."""
    pairs = [(net(batch.x, batch.task), batch.y) for batch in loader]
    return torch.cat([z for z, _ in pairs]), torch.cat([y for _, y in pairs])


def accuracies(net, loaders):
    outputs = [evaluated(net, loader) for loader in loaders]
    return [((z.argmax(1) == y).sum() / len(y)).item() for z, y in outputs]


def learned(scenario, **options):
    """Return the tasks, the evaluation and the kept nets after all tasks. A task has two epochs of four batches."""
    tasks = sequence(scenario, validation=0.2)
    module, keep = learner(tasks), Keep()
    evaluation = Evaluation(len(tasks), every=3, shares_outputs=scenario == "domain")
    for task in tasks:
        trainer([evaluation, keep], max_epochs=2, **options).fit(module, datamodule=task)
    return tasks, evaluation, keep


@SCENARIOS
def test_every_number_is_that_of_a_loop_over_tasks(scenario):
    """R on test and validation data, the accuracies before training and inside tasks, and the final nll and ece."""
    tasks, evaluation, keep = learned(scenario)
    for i, net in enumerate(keep.after):
        assert evaluation.matrix("test")[i].tolist() == pytest.approx(accuracies(net, tasks[i].test_dataloader()))
        on_validation = accuracies(net, tasks[i].val_dataloader())
        assert evaluation.matrix("validation")[i].tolist() == pytest.approx(on_validation)
    if scenario == "class":
        assert evaluation.initial is None
    else:
        first = accuracies(keep.inside["first"], tasks[0].test_dataloader())
        assert evaluation.initial.tolist() == pytest.approx(first)
    assert [inside[:2] for inside in evaluation.within] == [(task, step) for task in range(3) for step in (3, 6)]
    for task, step, found in evaluation.within:
        assert found == pytest.approx(accuracies(keep.inside[task, step], tasks[task].test_dataloader()))
    for found, loader in zip(evaluation.per_task, tasks[2].test_dataloader(), strict=True):
        z, y = evaluated(keep.after[-1], loader)
        z = z[:, z.isfinite().all(0)]
        assert found["accuracy"] == pytest.approx((z.argmax(1) == y).double().mean().item())
        assert found["nll"] == pytest.approx(cross_entropy(z, y).item(), rel=1e-5)
        error = MulticlassCalibrationError(z.shape[1], n_bins=15, norm="l1")(z, y)
        assert found["ece"] == pytest.approx(error.item(), abs=1e-5)


def test_counts_are_in_eval_mode_and_add_up_over_batches():
    """The module keeps its mode and its BatchNorm statistics."""
    tasks = sequence("domain", 1)
    net = Net(mlp(tasks.shape, (12,), batch_norm=True, dropout=0.5), tasks.scenario.build_head(12, tasks.sizes))
    module = Learner(net, partial(torch.optim.SGD, lr=0.1)).train()
    (batch,) = tasks[0].test_dataloader()[0]
    parts = [Batch(x, y, 0) for x, y in zip(batch.x.split(20), batch.y.split(20), strict=True)]
    before = snapshot(module.state_dict())
    whole, added = (measure.sums for measure in measured(module, [[batch], parts]))
    assert module.training and all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    torch.testing.assert_close(whole, added)
    z = deepcopy(net).eval()(batch.x, 0)
    loss = cross_entropy(z, batch.y, reduction="sum").item()
    expected = [loss, len(batch.y), (z.argmax(1) == batch.y).sum().item()]
    assert whole[:3].tolist() == pytest.approx(expected, rel=1e-5)


def test_accumulated_batches_are_one_step_and_evaluated_once():
    _, evaluation, _ = learned("domain", accumulate_grad_batches=2)
    assert [inside[:2] for inside in evaluation.within] == [(task, 3) for task in range(3)]


def test_the_metrics_of_the_first_tasks_use_only_those():
    """Evaluations before training and inside tasks are of test data, so those of validation data leave them out."""
    _, evaluation, _ = learned("domain")
    evaluation.within = [inside for inside in evaluation.within if inside.task < 2]
    cut = [MidTaskEvaluation(inside.task, inside.step, inside.accuracy[:2]) for inside in evaluation.within]
    r = evaluation.matrix("test")[:2, :2]
    expected = summarize(load_metrics(), r, evaluation.initial[:2], cut, shares_outputs=True)
    assert evaluation.summarize("test", 2) == expected
    assert None not in (expected["forward_transfer"], expected["stability_gap"])
    evaluation.metrics = {"tasks": Metric("tasks", "", function=lambda matrix, mid_task: len(mid_task[0].accuracy))}
    assert evaluation.summarize("test", 2) == {"tasks": 2}
    evaluation.metrics = load_metrics()
    on_validation = summarize(load_metrics(), evaluation.matrix("validation"), shares_outputs=True)
    assert evaluation.summarize("validation") == on_validation


def test_the_seconds_of_evaluations_add_up_over_tasks():
    tasks = sequence("domain", 2)
    module, evaluation = learner(tasks), Evaluation(2)
    trainer([evaluation]).fit(module, datamodule=tasks[0])
    assert evaluation.seconds > 0
    evaluation.seconds = 1000.0
    trainer([evaluation]).fit(module, datamodule=tasks[1])
    assert evaluation.seconds > 1000


def test_a_checkpoint_of_counts_gives_the_same_matrices():
    """Checkpoints of earlier versions have correct answers and examples (2, T, T) instead of R."""
    tasks, evaluation, _ = learned("domain")
    state, counts = evaluation.state_dict(), {}
    for which, r in state.pop("matrices").items():
        loaders = tasks[0].test_dataloader() if which == "test" else tasks[0].val_dataloader()
        examples = torch.tensor([loader.examples for loader in loaders]).expand(3, 3)
        counts[which] = torch.stack([(r * examples).round().long(), examples])
    resumed = Evaluation.of(tasks[0].sequence)
    resumed.load_state_dict({**state, "counts": counts})
    for which in ("test", "validation"):
        assert torch.equal(resumed.matrix(which), evaluation.matrix(which))
        assert resumed.summarize(which) == evaluation.summarize(which)
    unfinished = {which: torch.zeros(2, 3, 3, dtype=torch.long) for which in counts}
    resumed.load_state_dict({**state, "counts": unfinished})
    assert resumed.matrix("test").isnan().all()
