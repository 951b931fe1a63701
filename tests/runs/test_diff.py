"""clbench diff: options and results of two runs, and the exit code."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from clbench.errors import ConfigError
from clbench.runs.diff import compare, difference, main

SMALL = ("data.tasks=2", "data.examples_per_task=64", "net.hidden=[16]", "epochs=1", "logger=none", "checkpoints=none")
NAN = math.nan


def test_matrices_are_compared_over_the_tasks_of_both_runs():
    """Only tasks that both runs have learned count."""
    r = np.array([[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [NAN, NAN, NAN]])
    s = np.array([[0.9, 0.1, 0.1], [0.8, 0.5, 0.2], [0.6, 0.6, 0.6]])
    largest, first = compare(r, s)
    assert largest == pytest.approx(0.2)
    assert first == 1
    assert compare(r, r) == (0.0, None)
    assert compare(s[:2], s[:2]) == (0.0, None)
    assert math.isnan(compare(r, s[:2, :2])[0])


def test_the_same_run_twice_is_bit_identical_and_a_seed_is_not(run, tmp_path, capsys):
    run("strategy=ewc", *SMALL, folder="a")
    run("strategy=ewc", "threads=1", *SMALL, folder="b")
    run("strategy=ewc", "seed=1", "lam=10", *SMALL, folder="c")
    a, b, c = (str(tmp_path / name) for name in "abc")

    assert main([a, b]) == 0
    out = capsys.readouterr().out
    assert "the configurations are equal" in out
    assert "the results are bit-identical" in out
    assert "execution" not in out  # threads=1 is the default of the data preset

    assert main([a, c]) == 1
    out = capsys.readouterr().out
    assert "seed" in out and "lam" in out and "the results differ: R differs by at most 0." in out
    found = difference(tmp_path / "a", tmp_path / "c")
    assert found.config == {"lam": (1000.0, 10), "seed": (0, 1)}
    assert found.first == 0
    assert found.environment == found.execution == {}


def test_a_difference_has_each_option_of_a_strategy_once(run, tmp_path):
    run("strategy=finetune", *SMALL, folder="a")
    run("strategy=l2", *SMALL, folder="b")
    found = difference(tmp_path / "a", tmp_path / "b")
    assert found.config["lam"] == (None, 0.1)
    assert "strategy.lam" not in found.config  # ${lam}
    assert found.config["strategy.anchors"] == ("", "latest")


def test_versions_unfinished_runs_and_other_numbers_are_reported(run, tmp_path, capsys):
    run("strategy=finetune", *SMALL, folder="a")
    run("strategy=finetune", *SMALL, folder="b")
    file = tmp_path / "b/metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    metrics["versions"]["torch"] = "1.0"
    metrics["accuracy_matrix"][1] = [None, None]
    file.write_text(json.dumps(metrics), encoding="utf-8")
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    assert "torch" in out and "1.0" in out
    assert "A learned 2 tasks and B learned 1, and R is equal for the tasks that both learned" in out

    metrics["accuracy_matrix"] = json.loads((tmp_path / "a/metrics.json").read_text(encoding="utf-8"))[
        "accuracy_matrix"
    ]
    metrics["per_task"][0]["nll"] += 1
    file.write_text(json.dumps(metrics), encoding="utf-8")
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "R is equal, but other numbers in metrics.json differ" in capsys.readouterr().out


def test_a_folder_without_a_run_is_one_line_and_exit_code_2(tmp_path):
    with pytest.raises(ConfigError, match="expected a run with results .no metrics.json"):
        difference(tmp_path, tmp_path)
    command = [sys.executable, "-m", "clbench.runs.diff", "nowhere", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: nowhere: expected a run folder, but there is no such folder. Try the output_dir of a run, or the folder "
        "of one run in a sweep.\n"
    )
