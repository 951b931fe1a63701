"""A run that an option of the Trainer cuts short is marked as partial, and one without any batch is refused."""

from __future__ import annotations

import pytest

import clbench
from clbench.errors import ConfigError
from tests.conftest import others_slow

SHORT = ["data.tasks=2", "epochs=1", "net.hidden=[8]", "trainer=cpu", "logger=none", "samples=5"]

PARTIAL = {
    "+trainer.limit_train_batches=1": "task 1: 1 of 41 batches per epoch (trainer.limit_train_batches=1)",
    "+trainer.limit_train_batches=0.1": "task 1: 4 of 41 batches per epoch (trainer.limit_train_batches=0.1)",
    "+trainer.overfit_batches=2": "task 1: 2 of 41 batches per epoch (trainer.overfit_batches=2)",
    "+trainer.fast_dev_run=true": "task 1: 1 step (trainer.fast_dev_run=True)",
    "trainer=debug": "task 1: 3 of 41 batches per epoch (trainer.limit_train_batches=3)",
    "+trainer.max_time=00:00:00:01 epochs=5000": " of 205000 steps (trainer.max_time)",
}
WHOLE = ["+trainer.limit_train_batches=1.0", "+trainer.limit_train_batches=500", "trainer.limit_val_batches=0"]
REFUSED = {
    "+trainer.limit_train_batches=0": "trainer.limit_train_batches=0: expected at least one training batch",
    "+trainer.limit_train_batches=0.0": "trainer.limit_train_batches=0.0: expected at least one training batch",
    "+trainer.limit_train_batches=0.01": "got none of the 41 batches of task 1. Remove the option",
    "+trainer.overfit_batches=0.01": "trainer.overfit_batches=0.01: expected at least one training batch",
    "+trainer.max_time=00:00:00:00": "task 1 was not trained, because the options of the Trainer allow no step.",
    "+trainer.max_steps=1": "trainer.max_steps=1: this option is named steps",
    "+trainer.max_epochs=1": "trainer.max_epochs=1: this option is named epochs",
}


@pytest.mark.parametrize("options", others_slow(PARTIAL, "+trainer.limit_train_batches=1"))
def test_a_run_that_was_cut_short_is_partial(tmp_path, options):
    for _ in range(2):  # the second command trains nothing
        metrics = clbench.run([*SHORT, *options.split()], tmp_path, quiet=True)
        assert metrics["status"] == "partial"
        assert len(metrics["partial"]) == 2 and PARTIAL[options] in metrics["partial"][0]
    assert "this run is already finished, but partial" in (tmp_path / "train.log").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="contains the results of another run"):
        clbench.run(SHORT, tmp_path, quiet=True)
    assert "complete" not in set(clbench.read(tmp_path).status)


@pytest.mark.parametrize("option", others_slow(WHOLE))
def test_a_limit_above_the_data_leaves_a_run_complete(tmp_path, option):
    metrics = clbench.run([*SHORT, option], tmp_path, quiet=True)
    assert (metrics["status"], metrics["partial"]) == ("complete", [])


@pytest.mark.parametrize("option", others_slow(REFUSED, "+trainer.limit_train_batches=0"))
def test_a_limit_without_any_batch_is_refused(tmp_path, option):
    with pytest.raises(ConfigError) as caught:
        clbench.run([*SHORT, option], tmp_path / "a", quiet=True)
    assert REFUSED[option] in str(caught.value)
