"""clbench.run: the command in the current process, without side effects."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import clbench
from clbench.config.options import conf_dir
from clbench.errors import ConfigError, Unstable

TINY = ["data.tasks=2", "steps=2", "net.hidden=[8]", "trainer=cpu", "logger=none", "samples=5"]


@pytest.mark.slow
def test_run_returns_what_the_command_writes(command, tmp_path):
    done = command(*TINY, "output_dir=typed")
    assert done.returncode == 0, done.stderr
    typed = json.loads((tmp_path / "typed/metrics.json").read_text(encoding="utf-8"))
    called = clbench.run(TINY, tmp_path / "called")
    assert called == json.loads((tmp_path / "called/metrics.json").read_text(encoding="utf-8"))
    assert {**called, "seconds": 0} == {**typed, "seconds": 0}
    names = sorted(file.name for file in (tmp_path / "typed").rglob("*"))
    assert sorted(file.name for file in (tmp_path / "called").rglob("*")) == names


def test_runs_follow_each_other_also_after_an_error(tmp_path):
    first = clbench.run(TINY, tmp_path / "a")
    with pytest.raises(ConfigError, match="lam=-1: expected a finite number"):
        clbench.run([*TINY, "lam=-1"], tmp_path / "b")
    second = clbench.run(TINY, tmp_path / "c")
    assert first["accuracy_matrix"] == second["accuracy_matrix"]


def test_a_complete_run_is_returned_and_not_trained_again(tmp_path, capsys):
    first = clbench.run(TINY, tmp_path / "a")
    capsys.readouterr()
    figure = tmp_path / "a/accuracy_matrix.png"
    drawn = figure.read_bytes()
    figure.unlink()  # as on a disk that was full
    assert clbench.run(TINY, tmp_path / "a") == first
    assert "this run is already complete" in capsys.readouterr().out
    assert figure.read_bytes() == drawn


def test_without_a_folder_a_run_is_stored_in_output_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clbench.run([*TINY, "output_dir=here"])
    assert (tmp_path / "here/metrics.json").exists()
    first, second = (clbench.run(TINY, quiet=True) for _ in range(2))
    assert first["accuracy_matrix"] == second["accuracy_matrix"]
    assert len(list(tmp_path.glob("outputs/*/*/metrics.json"))) == 2


@pytest.mark.parametrize("quiet", [True, False])
def test_the_display_is_shown_unless_quiet_and_always_logged(tmp_path, capsys, quiet):
    clbench.run(TINY, tmp_path / "a", quiet=quiet)
    assert ("task 2/2" in capsys.readouterr().out) is not quiet
    assert "task 2/2" in (tmp_path / "a/train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["seed=0,1", "-m"],
            "^-m: expected the overrides of a single run. Try the command clbench train -m for a sweep.$",
        ),
        ("strategy=ewc", r"overrides='strategy=ewc': expected a list .* Try \['strategy=ewc'\]"),
        (["strategy=ewcc"], "strategy=ewcc: expected one of adam_moments, agem, "),
        (["lam"], "'lam': expected option=value"),
        (["--lam=1"], "--lam=1: expected option=value without dashes. Try lam=1"),
        (["depth=3"], "unknown option depth"),
        (["choose_lam_on=3"], "choose_lam_on was renamed. Try select_lam_on_first_tasks="),
        (["+data.cut.order=seed"], "data.cut.order was renamed. Try data.split.order="),
        (["~strategy.draws"], "strategy.draws was renamed. Try strategy.label_samples="),
        (["net=null"], "net=null: expected one of cnn, "),
        (["net=true"], "net=true: expected one of cnn, "),
        (["strategy="], "strategy=: expected one of adam_moments, agem, "),
        (["+experiment=permuted_mnist"], "already has a choice. Try experiment=permuted_mnist."),
        (None, "expected a list of strings, got None"),
        ([3], r"expected a list of strings, got 3. Try \['strategy=ewc'"),
        (("lam=-1" for _ in range(1)), "lam=-1: expected a finite number >= 0"),
        (["select_lam_on_first_tasks=2"], "expected a grid over lam"),
        (["strategy=finetune", "lam=3"], "strategy=finetune has no option lam"),
        (["net=custom", "net._target_=nowhere.Net"], "_target_=nowhere.Net cannot be imported"),
    ],
)
def test_a_wrong_configuration_is_a_config_error(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        clbench.run(overrides, tmp_path / "a")
    with pytest.raises(ConfigError, match="config_dir=nowhere: expected a folder"):
        clbench.run(TINY, tmp_path / "a", config_dir="nowhere")


def test_non_finite_weights_are_unstable_as_in_the_command(tmp_path):
    options = ("optimizer=sgd", "lr=1e30", "steps=5", "data.tasks=2", "trainer=cpu", "logger=none")
    with pytest.raises(Unstable, match="non-finite"):
        clbench.run(options, tmp_path / "a")
    assert "non-finite" in (tmp_path / "a/failed.txt").read_text(encoding="utf-8")


def test_a_run_restores_hydra_and_the_threads_of_torch(tmp_path):
    def state():
        return GlobalHydra.instance().hydra, HydraConfig.instance().cfg, torch.get_num_threads()

    GlobalHydra.instance().clear()
    before = state()
    clbench.run([*TINY, "threads=2"], tmp_path / "a", quiet=True)
    assert state() == before
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):  # the caller has initialised Hydra
        before = state()
        clbench.run(TINY, tmp_path / "b", quiet=True)
        with pytest.raises(ConfigError):
            clbench.run(["depth=3"], tmp_path / "c")
        assert state() == before
        assert hydra.compose("train", ["seed=3"]).seed == 3


def test_dry_run_and_stop_after_task(tmp_path):
    """A dry run trains nothing, and ``stop_after_task`` returns the metrics so far."""
    assert clbench.run([*TINY, "dry_run=true"], tmp_path / "a") == {}
    assert not (tmp_path / "a/checkpoints").exists()
    part = clbench.run([*TINY, "stop_after_task=1"], tmp_path / "a")
    assert part["status"] == "running" and part["accuracy_matrix"][1] == [None, None]
    assert clbench.run(TINY, tmp_path / "a")["status"] == "complete"


def test_a_folder_of_configuration_groups_is_searched(tmp_path):
    folder = tmp_path / "it's more"
    (folder / "strategy").mkdir(parents=True)
    yaml = "# @package _global_\ndefaults: [/strategy/ewc, _self_]\nlam: 0.5\n"
    (folder / "strategy/weak.yaml").write_text(yaml, encoding="utf-8")
    metrics = clbench.run([*TINY, "strategy=weak"], tmp_path / "a", config_dir=folder)
    assert (metrics["strategy"]["name"], metrics["strategy"]["lam"]) == ("weak", 0.5)


def test_a_configuration_may_refer_to_values_of_hydra(tmp_path):
    metrics = clbench.run([*TINY, "data.name=${hydra:runtime.choices.net}"], tmp_path / "a")
    assert metrics["status"] == "complete"
    assert clbench.read(tmp_path / "a").net[0] == "mlp"


def test_runs_of_one_sweep_folder_share_their_first_task(tmp_path):
    options = ("steps=4", "data.tasks=2", "trainer=cpu", "logger=none")
    mas, l2 = (
        clbench.run([f"strategy={name}", *options], tmp_path / name, quiet=True, sweep=tmp_path)
        for name in ("mas", "l2")
    )
    assert mas["shared_first_task"] == l2["shared_first_task"] is not None
    assert mas["seconds"]["shared"] == 0 < l2["seconds"]["shared"]


def test_run_works_inside_an_event_loop_as_in_a_notebook(tmp_path):
    async def cell():
        return clbench.run(TINY, tmp_path / "a")["status"]

    assert asyncio.run(cell()) == "complete"


def test_a_wrong_option_is_reported_before_torch_is_imported():
    program = (
        "import sys, clbench\n"
        "try: clbench.run(['depth=3'])\n"
        "except ValueError as error: print(error)\n"
        "print([name for name in ('torch', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["unknown option depth. --help lists all options.", "[]"], done.stderr


def test_a_file_as_the_folder_of_a_run_is_an_error(tmp_path):
    (tmp_path / "a").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="a: expected a folder, but it is a file"):
        clbench.run(TINY, tmp_path / "a")


def worst_task(matrix, initial):
    """lowest accuracy on a task at the end"""
    return matrix[-1].min()


def test_a_metric_added_to_a_finished_run_is_computed_and_saved(tmp_path):
    extra = "metrics.extra=[tests.experiment.test_run.worst_task]"
    clbench.run(TINY, tmp_path / "a", quiet=True)
    added = clbench.run([*TINY, extra], tmp_path / "a", quiet=True)
    whole = clbench.run([*TINY, extra], tmp_path / "b", quiet=True)
    assert added["worst_task"] == whole["worst_task"] == min(whole["accuracy_matrix"][-1])
    assert added["validation"] == whole["validation"]
    assert added["extra_metrics"] == whole["extra_metrics"]


def fails_late(matrix):
    if not (matrix == matrix.round(1)).all():  # the examples on which metrics are tested before training are round
        raise RuntimeError("boom")
    return 0.0


def test_a_metric_that_fails_after_training_loses_no_task(tmp_path):
    """The error names the metric, and the run can be resumed."""
    with pytest.raises(ConfigError, match="metric fails_late fails on the accuracies of this run: RuntimeError: boom"):
        clbench.run([*TINY, "metrics.extra=[tests.experiment.test_run.fails_late]"], tmp_path / "a", quiet=True)
    finished = clbench.run(TINY, tmp_path / "a", quiet=True)
    assert finished["status"] == "complete"
    assert "resuming after task" in (tmp_path / "a/train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["lam=-1", "samples=100000", "depth=3"])
def test_a_rejected_configuration_leaves_no_folder(tmp_path, option):
    with pytest.raises(ConfigError):
        clbench.run([*TINY, option], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_files_of_a_user_are_never_removed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError):
        clbench.run([*TINY, "samples=100000"], tmp_path / "a")
    assert (tmp_path / "a/notes.txt").read_text(encoding="utf-8") == "mine"


def test_the_error_of_another_run_names_each_option_once(tmp_path):
    clbench.run([*TINY[:-1], "strategy=l2"], tmp_path / "a", quiet=True)
    with pytest.raises(ConfigError, match=r"Differences \(stored and new\): lam 0.1 and 3.$"):
        clbench.run([*TINY[:-1], "strategy=l2", "lam=3"], tmp_path / "a")
