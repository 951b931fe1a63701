"""eval_on: the examples on which tasks are evaluated."""

from __future__ import annotations

import lightning as L
import pytest
import torch

import clbench
from clbench.config.compose import compose
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.runs.read import read_runs

RUN = ("data=split_digits", "data.tasks=2", "steps=20", "trainer=cpu", "strategy=finetune", "data.examples_per_task=60")


def test_a_run_is_evaluated_on_its_training_examples(tmp_path):
    """R equals the accuracy on the training examples of the same learner; the runs are different benchmarks."""
    folders = {which: tmp_path / which for which in ("train", "test")}
    found = {which: clbench.run([*RUN, f"eval_on={which}"], folder, quiet=True) for which, folder in folders.items()}
    assert {which: each["data"]["eval_on"] for which, each in found.items()} == {"train": "train", "test": "test"}
    assert found["train"]["validation"] == found["test"]["validation"]
    assert found["train"]["accuracy_matrix"] != found["test"]["accuracy_matrix"]
    assert read_runs([tmp_path]).benchmark.nunique() == 2
    assert read_runs([folders["train"]]).benchmark[0].endswith("evaluated on training examples")

    sequence, learner, _ = build(compose([*RUN, "eval_on=train"]))
    L.Trainer(max_steps=1, barebones=True).fit(learner, datamodule=sequence[0])
    (batch,) = sequence[0].test_dataloader()[0]
    (trained,) = sequence[0].importance_dataloader()
    torch.testing.assert_close(batch.x, trained.x)
    assert len(batch.y) == 60


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="eval_on=validation: expected test or train"):
        clbench.run([*RUN, "eval_on=validation"], tmp_path, quiet=True)


def test_the_terminal_says_on_which_examples(tmp_path, capsys):
    clbench.run([*RUN, "eval_on=train"], tmp_path)
    assert "training accuracy (row: after training on a task" in capsys.readouterr().out
