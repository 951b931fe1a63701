"""Weights of the new and the old loss of ER and LwF."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import clbench
from clbench import ER, LwF
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.strategies.loss_weights import weight_of_new
from tests.conftest import stopped_after, trainer

SHORT = ("data.tasks=3", "data.examples_per_task=60", "epochs=1")


def test_tasks_is_one_over_the_number_of_tasks_so_far():
    assert [weight_of_new("tasks", t, 3) for t in range(3)] == [1.0, 1 / 2, 1 / 3]
    assert [weight_of_new((0.5, 1.0, 0.25), t, 3) for t in range(3)] == [0.5, 1.0, 0.25]
    assert weight_of_new("equal", 1, 3) is None


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize("replay", [None, 5])
def test_er_weighs_the_mean_losses_of_new_and_old(composed, scenario, replay):
    sequence, learner, _ = build(composed(*SHORT[:2], f"scenario={scenario}"))
    er = ER(memory=20, replay=replay, loss_weights=[0.5, 0.3, 0.5])
    steps = []

    def record(outputs, y, weigh=er._weighted):
        loss, n = weigh(outputs, y), er._number
        if n < len(y):
            parts = [cross_entropy(outputs[s].double(), y[s]) for s in (slice(0, n), slice(n, None))]
            steps.append((loss.item(), (0.3 * parts[0] + 0.7 * parts[1]).item(), len(y) - n))
        return loss

    trainer([er]).fit(learner, datamodule=sequence[0])
    er._weighted = record
    trainer([er]).fit(learner, datamodule=sequence[1])
    assert len(steps) > 1
    assert steps[0][2] == (replay or sequence.batch_size)
    for found, expected, _ in steps:
        assert found == pytest.approx(expected, rel=1e-5)
    assert learner.weigh is None  # the fit has ended


def test_lwf_weighs_the_task_loss_and_lam_times_distillation(composed):
    sequence, learner, _ = build(composed(*SHORT[:2], "scenario=domain"))
    lwf = LwF(lam=3.0, temperature=2.0, loss_weights="tasks")
    trainer([lwf]).fit(learner, datamodule=sequence[0])
    old = [p.detach().clone() for p in learner.parameters()]
    steps = []

    class Record(type(learner)):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                now = self.net(batch.x, batch.task)
                before = lwf.old(batch.x, batch.task)
            kept = kl_div((now / 2).log_softmax(1), (before / 2).softmax(1), reduction="batchmean")
            result = super().training_step(batch, batch_idx)
            steps.append((result["loss"].item(), (cross_entropy(now, batch.y) / 2 + 3 * kept / 2).item()))
            return result

    learner.__class__ = Record
    trainer([lwf]).fit(learner, datamodule=sequence[1])
    assert len(steps) > 1
    assert any(not torch.equal(p, q) for p, q in zip(old, learner.parameters(), strict=True))
    for found, expected in steps:
        assert found == pytest.approx(expected, rel=1e-5)


def test_half_of_each_is_equal_with_as_many_old_as_new(run):
    """Up to rounding, in the loss of the second task. In the first step the memory is empty."""
    runs = [run("strategy=er", "data.examples_per_task=64", "data.validation=0", f"strategy.loss_weights={w}", *SHORT[::2],
                folder=str(w)) for w in ("equal", 0.5, 0.9)]  # fmt: skip
    average = [r["average_accuracy"] for r in runs]
    assert average[0] == pytest.approx(average[1], abs=0.03)
    assert runs[0]["accuracy_matrix"] != runs[2]["accuracy_matrix"]


@pytest.mark.parametrize("strategy", ["er", "lwf"])
def test_a_weighted_run_resumes_bit_for_bit(run, tmp_path, strategy):
    options = (f"strategy={strategy}", "strategy.loss_weights=[0.5,0.2,0.7]", *SHORT)
    whole = run(*options, folder="whole")
    folder = stopped_after(0, tmp_path / "whole", tmp_path / "again")
    assert clbench.run([*options, "trainer=cpu"], folder)["accuracy_matrix"] == whole["accuracy_matrix"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["strategy=er", "strategy.loss_weights=half"],
            "strategy.loss_weights=half: expected equal, tasks, a number in",
        ),
        (["strategy=er", "strategy.loss_weights=1.5"], "strategy.loss_weights=1.5: expected equal, tasks, a number in"),
        (["strategy=er", "strategy.loss_weights=[0.5,0.5]"], "strategy.loss_weights=.*a list of 3, one for each task"),
        (["strategy=lwf", "strategy.loss_weights=[0.5]"], "strategy.loss_weights=.*a list of 3, one for each task"),
        (["strategy=lwf", "strategy.loss_weights=tasks", "lam=0"], "expected lam > 0, because there is no old loss"),
        (["strategy=er", "strategy.loss_weights=tasks", "compile=true"], "expected equal with compile=true"),
    ],
)
def test_wrong_weights_are_refused_before_training(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options, *SHORT)
