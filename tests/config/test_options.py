"""Training options: length, early stopping, weights that are kept, schedules, evaluation inside tasks, loggers."""

from __future__ import annotations

import csv

import pytest
import torch

from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.training import loggers
from clbench.training.loggers import LoggerContext
from clbench.training.measures import measured
from tests.conftest import replace_in, trainer
from tests.test_train import load, same_checkpoint

SHORT = ("data.tasks=2", "net.hidden=[16]")
STEPS = 41  # steps per epoch: 1,294 training examples in batches of 32


def logged(folder):
    """Return the rows of all metrics.csv files in order, without empty values."""
    rows = []
    for file in sorted(folder.glob("logs/*/metrics.csv")):
        rows += [
            {k: float(v) for k, v in row.items() if v}
            for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())
        ]
    return rows


def without_cost(rows):
    """Return rows without seconds and memory, which differ between equal runs."""
    cost = ("seconds", "memory")
    return [{key: value for key, value in row.items() if not key.startswith(cost)} for row in rows]


def last_step(folder):
    return max(row["step"] for row in logged(folder))


def test_a_task_shorter_than_eval_every_has_no_evaluation_inside(run, tmp_path):
    result = run(*SHORT, "steps=[2,10]", "eval_every=5", "strategy=finetune")
    assert [(w["task"], w["step"]) for w in result["within_tasks"]] == [(1, 5), (1, 10)]
    assert (tmp_path / "run/accuracy_within_tasks.png").exists()


def test_evaluations_begin_after_the_first_optimizer_step(run):
    """Batches whose gradients are only accumulated do not count as steps."""
    options = (*SHORT, "steps=4", "+trainer.accumulate_grad_batches=2", "eval_every=2", "strategy=finetune")
    assert {(w["task"], w["step"]) for w in run(*options)["within_tasks"]} == {(0, 2), (0, 4), (1, 2), (1, 4)}


def test_epochs_and_steps_are_one_number_or_one_per_task(run, tmp_path):
    for name, option, steps in (
        ("a", "epochs=2", 4 * STEPS),
        ("b", "epochs=[1,3]", 4 * STEPS),
        ("c", "steps=7", 14),
        ("d", "steps=[5,60]", 65),
    ):
        run(*SHORT, option, "strategy=finetune", folder=name)
        assert last_step(tmp_path / name) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["epochs=[1,2,3]"], r"epochs=\[1, 2, 3\]: expected one number, or a list of 2, one per task"),
        (["steps=0"], "steps=0: expected an integer >= 1"),
        (["patience=0"], "patience=0: expected an integer >= 1 or null"),
        (["consolidate=first"], "consolidate=first: expected last or best, got 'first'."),
        (["consolidate=best", "data.validation=0"], "need validation data"),
        (["eval_every=0"], "eval_every=0: expected an integer >= 1 or null"),
        (["log_every=0"], "log_every=0: expected an integer >= 1"),
        (
            ["lr=-1"],
            "lr=-1: expected a finite number >= 0 or null, got -1.",
        ),
        (
            ["+optimizer.make.momentum=1"],
            "optimizer.make.momentum=1: torch.optim.Adam has no option momentum. Try one of amsgrad, betas, ",
        ),
        (
            ["optimizer=sgd", "optimizer.make.momentum=-1"],
            "SGD could not be constructed or stepped .Invalid momentum value: -1.* Try other values of optimizer.make",
        ),
        (
            ["scheduler=step", "scheduler.make.step_size=x"],
            "scheduler.make.step_size=x: expected an integer, got 'x'.",
        ),
        (
            ["scheduler=step", "scheduler.make.step_size=0"],
            "StepLR could not be constructed or stepped.* Try other values of scheduler.make",
        ),
        (
            ["trainer.precision=bf16-true"],
            "precision=bf16-true: expected a precision with float32 weights. Try 32-true",
        ),
        (["trainer.precision=64"], "precision=64: expected a precision with float32 weights. Try 32-true"),
        (
            ["scheduler=cosine", "scheduler.interval=epoch"],
            "^scheduler.length=T_max: expected scheduler.interval=step, .* Use that, or scheduler.length=null and scheduler.make",
        ),
        (
            ["scheduler=step", "scheduler.interval=batch"],
            "^scheduler.interval=batch: expected one of epoch, step, got 'batch'.",
        ),
    ],
)
def test_a_wrong_option_is_named(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*SHORT, *options, "strategy=finetune")


def test_patience_ends_a_task_early(run, tmp_path):
    options = (*SHORT, "epochs=40", "lr=0.02", "strategy=finetune", "data.tasks=1", "patience=2")
    assert run(*options)["status"] == "complete"
    assert last_step(tmp_path / "run") < 40 * STEPS


@pytest.mark.slow
def test_best_keeps_the_weights_of_lowest_validation_loss(run, composed, tmp_path):
    """``consolidate=best`` keeps the weights of the epoch with the lowest validation loss."""
    options = (*SHORT, "lr=0.05", "strategy=finetune", "data.tasks=1")
    sequence, learner, _ = build(composed(*options))

    def weights_and_loss(folder):
        state = load(tmp_path / folder / "checkpoints/task_0.ckpt")["learner"]
        learner.load_state_dict(state)
        return state, measured(learner, sequence[0].val_dataloader())[0].loss

    for epochs in range(1, 7):  # with the same seed each run is the start of the next run
        run(*options, f"epochs={epochs}", folder=f"after{epochs}")
    run(*options, "epochs=6", "consolidate=best", folder="best")
    epochs = [weights_and_loss(f"after{k}") for k in range(1, 7)]
    lowest, _ = min(epochs, key=lambda pair: pair[1])
    assert lowest is not epochs[-1][0], "the last epoch is the best, so this test has no effect"
    assert same_checkpoint(weights_and_loss("best")[0], lowest)


@pytest.mark.parametrize("length", ["epochs=[1,2]", "steps=7", "steps=[3,50]", "epochs=3"])
def test_the_cosine_schedule_ends_with_each_task(run, tmp_path, length):
    """The learning rate is zero at the end of each task, with any number of epochs or steps."""
    run(*SHORT, length, "strategy=joint", "optimizer=sgd", "optimizer.reset=false", "scheduler=cosine")
    for task in range(2):
        (group,) = load(tmp_path / f"run/checkpoints/task_{task}.ckpt")["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [7, 1000])
def test_the_cosine_schedule_ends_at_epochs_or_steps(composed, steps):
    """The learning rate is zero at whichever of the two limits is reached first."""
    sequence, learner, _ = build(composed(*SHORT, "optimizer.reset=false", "scheduler=cosine"))
    trainer([], max_epochs=1, max_steps=steps).fit(learner, datamodule=sequence[0])
    (group,) = learner.optimizer_state["param_groups"]
    assert group["lr"] == pytest.approx(0, abs=1e-9)


def test_moments_of_adam_start_at_zero_without_bias_correction(composed):
    """The first step of the second task is that of Adam with m = .1 g and v = .001 g^2 after three steps before."""
    sequence, learner, _ = build(composed(*SHORT, "optimizer.reset=moments", "strategy=finetune", "scenario=domain"))
    trainer([], max_epochs=1, max_steps=3).fit(learner, datamodule=sequence[0])
    assert all(int(state["step"]) == 3 for state in learner.optimizer_state["state"].values())
    before = learner.net.head.linear.bias.detach().clone()
    trainer([], max_epochs=1, max_steps=1).fit(learner, datamodule=sequence[1])
    moved = (learner.net.head.linear.bias.detach() - before).abs()
    expected = 1e-3 * (0.1 / (1 - 0.9**4)) / (0.001 / (1 - 0.999**4)) ** 0.5
    torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scheduler", ["cosine", "step"])
def test_a_schedule_changes_the_rate_and_restarts_at_each_task(run, tmp_path, scheduler):
    """Weights differ from those of a constant rate, and the learning rate is scheduled again in each task."""
    options = (*SHORT, "epochs=3", "strategy=finetune", "optimizer=sgd", "optimizer.reset=false")
    extra = ["scheduler.make.step_size=1"] if scheduler == "step" else []
    run(*options, f"scheduler={scheduler}", *extra, folder="scheduled")
    run(*options, folder="constant")
    a, b = (load(tmp_path / name / "checkpoints/task_1.ckpt") for name in ("scheduled", "constant"))
    assert not same_checkpoint(a["learner"], b["learner"])
    (group,) = a["optimizer"]["param_groups"]
    expected = 0.0 if scheduler == "cosine" else 0.01 * 0.1**3
    assert group["lr"] == pytest.approx(expected, abs=1e-9)  # the schedule of one task


def test_evaluation_inside_tasks_changes_only_its_own_metrics(run, tmp_path):
    """It adds the stability gap, and the accuracy matrix stays the same."""
    options = ("data.tasks=3", "net.hidden=[16]", "epochs=1", "strategy=ewc", "net.dropout=0.2")
    inside, plain = run(*options, "eval_every=10", folder="inside"), run(*options, folder="plain")
    assert inside["accuracy_matrix"] == plain["accuracy_matrix"]
    assert [(w["task"], w["step"]) for w in inside["within_tasks"]] == [
        (t, s) for t in range(3) for s in (10, 20, 30, 40)
    ]
    r = torch.tensor(inside["accuracy_matrix"], dtype=torch.double)
    lowest = [
        min([*r[j + 1 :, j].tolist(), *(w["accuracy"][j] for w in inside["within_tasks"] if w["task"] > j)])
        for j in (0, 1)
    ]
    assert inside["min_accuracy"] == pytest.approx(sum(lowest) / 2)
    assert inside["worst_case_accuracy"] == pytest.approx(r[2, 2].item() / 3 + 2 / 3 * sum(lowest) / 2)
    gaps = [
        r[i - 1, j].item() - min(w["accuracy"][j] for w in inside["within_tasks"] if w["task"] == i)
        for i, j in ((1, 0), (2, 0), (2, 1))
    ]
    assert inside["stability_gap"] == pytest.approx(sum(gaps) / 3)
    assert plain["stability_gap"] is None
    assert (tmp_path / "inside/accuracy_within_tasks.png").exists()


def test_the_csv_log_has_losses_by_step_and_accuracies_by_task(run, tmp_path):
    """The step never decreases over the rows of the log."""
    result = run(*SHORT, "epochs=2", "log_every=10", "strategy=ewc", "lam=100")
    rows = logged(tmp_path / "run")
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    losses = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in losses] == list(range(10, 4 * STEPS + 1, 10))
    assert all(row["train/penalty"] == 0 for row in losses if row["task"] == 1)
    assert any(row["train/penalty"] > 0 for row in losses if row["task"] == 2)
    after = [row for row in rows if "acc/task_1" in row]
    assert [[row[f"acc/task_{j + 1}"] for j in range(i + 1)] for i, row in enumerate(after)] == [
        result["accuracy_matrix"][i][: i + 1] for i in range(2)
    ]
    assert rows[-1]["average_accuracy"] == result["average_accuracy"]


def test_logging_changes_nothing(run, tmp_path):
    a = run(*SHORT, "epochs=1", "log_every=1", folder="a")
    b = run(*SHORT, "epochs=1", "logger=none", folder="b")
    assert a["accuracy_matrix"] == b["accuracy_matrix"]
    assert a["config_hash"] == b["config_hash"]
    assert not (tmp_path / "b/logs").exists()


def test_a_resumed_process_keeps_the_csv_log_of_a_killed_one(tmp_path):
    """A process that resumes in the same task writes its csv log to a new folder."""
    context = LoggerContext(tmp_path, tmp_path, 0, {}, print)
    for step in range(3):
        logger = loggers.csv(context)
        logger.log_metrics({"loss": float(step)}, step)
        logger.finalize("success")
    files = sorted(tmp_path.glob("logs/*/metrics.csv"))
    assert [file.parent.name for file in files] == ["from_task_0", "from_task_0_2", "from_task_0_3"]
    assert [next(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))["loss"] for file in files] == [
        "0.0",
        "1.0",
        "2.0",
    ]


def test_a_resumed_run_continues_its_log_and_loses_nothing(run, tmp_path):
    run(*SHORT, "epochs=1", "log_every=10", "strategy=ewc")
    folder = tmp_path / "run"
    before = logged(folder)
    (folder / "checkpoints/task_1.ckpt").unlink()
    replace_in(folder / "metrics.json", '"complete"', '"running"')
    run(*SHORT, "epochs=1", "log_every=10", "strategy=ewc")
    assert logged(folder)[: len(before)] == before
    resumed = logged(folder)[len(before) :]
    assert without_cost(resumed) == without_cost([row for row in before if row["step"] > STEPS])


@pytest.mark.slow
def test_a_compiled_loss_learns_as_the_eager_one(run, tmp_path):
    options = (*SHORT, "steps=20", "strategy=ewc")
    run(*options, "compile=true", folder="compiled")
    run(*options, folder="eager")
    a, b = (load(tmp_path / name / "checkpoints/task_1.ckpt")["learner"] for name in ("compiled", "eager"))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_callbacks_of_the_user_are_called(run, tmp_path, monkeypatch):
    (tmp_path / "counting_callback.py").write_text(
        "import lightning as L\nbegun = []\n\n\nclass Counting(L.Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n        begun.append(trainer.datamodule.index)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    run(*SHORT, "epochs=1", "+trainer.callbacks=[{_target_:counting_callback.Counting}]")
    from counting_callback import begun

    assert begun == [0, 1]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("LearningRateMonitor", "LearningRateMonitor cannot run here: Cannot use"),
        ("EarlyStopping,monitor:foo", "EarlyStopping cannot run here: Early stopping conditioned on metric `foo`"),
        ("LearningRateFinder", "LearningRateFinder cannot run here: When using the learning rate finder"),
    ],
)
def test_a_callback_that_cannot_run_is_reported_in_one_line(run, callback, message):
    callbacks = f"+trainer.callbacks=[{{_target_:lightning.pytorch.callbacks.{callback}}}]"
    with pytest.raises(ConfigError, match="trainer.callbacks: " + message):
        run(*SHORT, "strategy=finetune", "logger=none", callbacks)
