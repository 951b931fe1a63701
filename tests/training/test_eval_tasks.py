"""eval_tasks=seen: after each task only the tasks so far are evaluated."""

from __future__ import annotations

import numpy as np
import pytest

import clbench
from clbench.errors import ConfigError
from clbench.report.__main__ import main as report
from clbench.runs.diff import difference
from clbench.runs.read import read_runs

RUN = (
    "data.tasks=3",
    "steps=8",
    "trainer=cpu",
    "strategy=ewc",
    "lam=10",
    "scenario=domain",
    "data.examples_per_task=60",
)
UNDEFINED = {"forward_transfer"}


@pytest.fixture
def runs(tmp_path):
    """Return the folders and the metrics of the same run with both choices."""
    folders = {which: tmp_path / which for which in ("all", "seen")}
    return folders, {
        which: clbench.run([*RUN, f"eval_tasks={which}", "eval_every=3"], folder, quiet=True)
        for which, folder in folders.items()
    }


def test_the_values_of_seen_tasks_and_their_metrics_are_the_same(runs):
    folders, found = runs
    for data in (lambda m: m, lambda m: m["validation"]):
        whole, seen = (np.array(data(found[which])["accuracy_matrix"], dtype=float) for which in ("all", "seen"))
        lower = np.tril(np.ones((3, 3), bool))
        assert (whole[lower] == seen[lower]).all() and np.isnan(seen[~lower]).all()
        for name in data(found["all"]).keys() & {
            "average_accuracy",
            "forgetting",
            "backward_transfer",
            "learning_accuracy",
        }:
            assert data(found["all"])[name] == data(found["seen"])[name]
    assert found["all"]["min_accuracy"] == found["seen"]["min_accuracy"]
    assert found["all"]["stability_gap"] == found["seen"]["stability_gap"]
    assert found["all"]["forward_transfer"] is not None and found["seen"]["forward_transfer"] is None
    assert found["seen"]["initial_accuracy"] == [None] * 3
    assert (folders["seen"] / "accuracy_matrix.csv").read_text().splitlines()[1].endswith(",,")


def test_such_runs_are_read_reported_and_compared(runs, tmp_path):
    folders, _ = runs
    read = read_runs(list(folders.values()))
    assert list(read.status) == ["complete"] * 2
    assert (report([str(folders["seen"]), "--output", str(tmp_path / "report")]) / "report.html").exists()
    found = difference(folders["all"], folders["seen"])
    assert found.largest == 0


def test_such_a_run_is_resumed(tmp_path):
    command = [*RUN, "eval_tasks=seen"]
    clbench.run([*command, "stop_after_task=2"], tmp_path / "a", quiet=True)
    resumed = clbench.run(command, tmp_path / "a", quiet=True)
    whole = clbench.run(command, tmp_path / "b", quiet=True)
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    assert clbench.run(command, tmp_path / "a", quiet=True) == resumed


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="eval_tasks=some: expected all or seen"):
        clbench.run([*RUN, "eval_tasks=some"], tmp_path, quiet=True)
