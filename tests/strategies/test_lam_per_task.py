"""lam as a list with one strength per task."""

from __future__ import annotations

import json

import pytest
import torch

import clbench
from clbench import EWC, L2, MAS, SI, OnlineEWC
from clbench.errors import ConfigError
from tests.conftest import stopped_after
from tests.strategies.test_penalty import Plain, assert_same, learn, loader, trainer

SHORT = ("data.tasks=3", "data.examples_per_task=60", "epochs=1")


@pytest.mark.parametrize("make", [EWC, OnlineEWC, MAS, SI, L2])
def test_each_task_is_trained_with_its_own_strength(make):
    """The same as one number that is changed between the tasks."""
    per_task, changed = make(lam=[7.0, 0.5, 0.1]), make(lam=7.0)
    modules = []
    for strategy in (per_task, changed):
        torch.manual_seed(0)
        modules.append(Plain())
        for task, lam in enumerate((7.0, 0.5, 0.1)):
            if strategy is changed:
                strategy.lam = lam
            trainer([strategy]).fit(modules[-1], loader(task))
            assert strategy.penalty_state().lam == lam
    assert_same(*({n: p.detach() for n, p in m.named_parameters()} for m in modules))
    assert_same(per_task.penalty.importance, changed.penalty.importance)


def test_a_task_without_a_strength_is_refused():
    with pytest.raises(ConfigError, match=r"lam=\[1.0, 2.0\]: expected a number, or a list of 3, one for each task"):
        learn(Plain(), EWC(lam=[1.0, 2.0]), tasks=3)


def test_the_state_counts_the_tasks():
    first, second = (EWC(lam=[1.0, 2.0, 3.0]) for _ in range(2))
    learn(Plain(), first, tasks=2)
    second.load_state_dict(first.state_dict())
    assert first.lam_now == second.lam_now == 2.0
    state = first.state_dict()
    del state["tasks"]
    with pytest.raises(ConfigError, match="the state is of a version that did not count the tasks"):
        second.load_state_dict(state)


@pytest.mark.parametrize("strategy", ["ewc", "si", "lwf"])
def test_a_run_with_strengths_per_task_resumes_bit_for_bit(run, tmp_path, strategy):
    options = (f"strategy={strategy}", "lam=[3,1e5,1]", *SHORT)
    whole = run(*options, folder="whole")
    for task in (0, 1):
        folder = stopped_after(task, tmp_path / "whole", tmp_path / f"again{task}")
        assert clbench.run([*options, "trainer=cpu"], folder)["accuracy_matrix"] == whole["accuracy_matrix"]
    assert whole["accuracy_matrix"] == run(options[0], "lam=[0,1e5,1]", *SHORT, folder="first")["accuracy_matrix"]
    assert whole["accuracy_matrix"] != run(options[0], "lam=1e5", *SHORT, folder="one")["accuracy_matrix"]
    assert json.loads((tmp_path / "whole/config.json").read_text(encoding="utf-8"))["config"]["lam"] == [3, 1e5, 1]
    table = clbench.read(tmp_path)
    assert f"{strategy} lam=[3,100000.0,1]" in set(table.setup)
    assert table[table.setup == f"{strategy} lam=[3,100000.0,1]"].lam.isna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lam=[1,2]"], r"lam=\[1.0, 2.0\]: expected a number, or a list of 3, one for each task"),
        (["strategy=lwf", "lam=[1,2,3,4]"], r"lam=.*expected a number, or a list of 3, one for each task"),
        (["lam=[]"], r"lam=\[\]: expected a number, or a list of 3"),
        (["lam=[1,-2,3]"], "lam=-2: expected a finite number >= 0"),
        (["lam=[1,a,3]"], "lam=a: expected a finite number >= 0"),
        (["strategy=nccl", "lam=[1,2,3]"], "lam=.*: expected a finite number"),
        (["lam=[1,2,3]", "strategy.every=5"], "expected a number for lam"),
    ],
)
def test_wrong_lists_are_refused_before_training(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options, *SHORT)


def test_lam_is_not_selected_among_lists(command):
    done = command("-m", "lam=[1,2,3],[1,2,4]", "select_lam_on_first_tasks=2", *SHORT)
    assert done.returncode != 0
    assert "select_lam_on_first_tasks=2: expected numbers for lam, because a list has no order" in done.stderr


def test_lists_share_the_first_task_with_one_number(command):
    done = command("-m", "lam=[1,2,3],10", *SHORT, "output_dir=sweep")
    assert done.returncode == 0, done.stderr
    assert "shared first task" in done.stdout
