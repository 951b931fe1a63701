"""Sweeps: the plan, the runs, the results and the selection of lam."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from statistics import fmean, stdev

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob

from clbench.config.options import conf_dir
from clbench.errors import ConfigError, Unstable
from clbench.metrics.formulas import intransigence
from clbench.metrics.interval import half_width
from clbench.report.__main__ import main
from clbench.runs import sweep_log
from clbench.runs.read import read


def test_intransigence_is_the_accuracy_gap_to_the_reference():
    r = torch.tensor([[0.9, 0.0], [0.5, 0.6]])
    reference = torch.tensor([[1.0, 0.0], [0.0, 0.9]])
    assert intransigence(r, reference) == pytest.approx((0.1 + 0.3) / 2)
    assert intransigence(reference, reference) == 0


@pytest.mark.slow
def test_a_sweep_with_a_reference_shows_intransigence(command, tmp_path):
    """Each run is compared with the reference of the same seed."""
    options = ("seed=0,1", "epochs=1", "data.tasks=2", "net.hidden=[16]", "output_dir=sweep")
    done = command("-m", "strategy=ewc,joint,independent", *options)
    assert done.returncode == 0, done.stderr
    assert "intransigence" in done.stdout
    assert "(joint)" in done.stdout
    names = json.loads((tmp_path / "sweep/sweep.json").read_text(encoding="utf-8"))["runs"]
    files = [tmp_path / "sweep" / name / "metrics.json" for name in names]
    r = [torch.tensor(json.loads(file.read_text(encoding="utf-8"))["accuracy_matrix"]) for file in files]
    rows = [line for line in done.stdout.splitlines() if line.startswith("│") and "-seed" in line]
    assert len(rows) == 6
    for i, row in enumerate(rows):
        assert f"{intransigence(r[i], r[2 + i % 2]):.3f}" in row  # runs 2 and 3 are joint, seed 0 and 1


def metrics_of(sweep):
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in sweep.glob("*/metrics.json")}


SMALL = ("steps=5", "data.tasks=2", "net.hidden=[16]")


def test_the_same_sweep_again_runs_only_missing_runs(command, tmp_path):
    """It uses the same folder."""
    first = command("-m", "strategy=finetune,ewc", "seed=0,1", *SMALL)
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "outputs/sweeps").iterdir()
    before = metrics_of(folder)
    (folder / next(iter(before)) / "metrics.json").unlink()
    again = command("-m", "strategy=finetune,ewc", "seed=0,1,2", *SMALL)
    assert again.returncode == 0, again.stderr
    assert "3 are done, 0 will resume, 3 are new" in again.stderr
    assert "3 of 3 done" in again.stderr
    after = metrics_of(folder)
    assert len(after) == 6
    for name, metrics in before.items():
        assert after[name]["accuracy_matrix"] == metrics["accuracy_matrix"]
    assert sum(after[name] == metrics for name, metrics in before.items()) == 3
    nothing = command("-m", "strategy=finetune,ewc", "seed=0,1,2", *SMALL)
    assert "6 are done, 0 will resume, 0 are new" in nothing.stderr
    assert nothing.stdout.count("│ finetune-seed") == 3
    values = [m["validation"]["average_accuracy"] for m in after.values() if m["strategy"]["name"] == "finetune"]
    half = half_width(stdev(values), 3)
    assert f"│ finetune │ 3     │ {fmean(values):.4f}          │ ± {half:.4f}      │" in nothing.stdout


def test_a_changed_configuration_does_not_mix_with_older_runs(command, tmp_path):
    for rate in ("0.001", "0.01"):
        done = command("-m", "seed=0,1", f"lr={rate}", *SMALL, "output_dir=here")
        assert done.returncode == 0, done.stderr
    assert "the folder also contains 2 runs of other configurations, left unchanged" in done.stderr
    assert len(metrics_of(tmp_path / "here")) == 4
    assert len({m["config_hash"] for m in metrics_of(tmp_path / "here").values()}) == 4


def test_a_dry_run_reports_what_a_sweep_takes_and_trains_nothing(command, tmp_path):
    done = command("-m", "sweep=lam_curve", *SMALL, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "24 runs in outputs" in done.stderr
    assert re.search(r"about \d+ (s|min) in one process, [\d.,]+ MB of checkpoints", done.stderr)
    assert not list(tmp_path.rglob("metrics.json"))
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["strategy=finetune,mas", "fisher=exact,empirical"],
            "fisher=exact: strategy=finetune has no option fisher. Remove it, or try strategy=",
        ),
        (
            ["strategy=nccl", "gamma=0.5", "seed=0,1"],
            "gamma=0.5: strategy=nccl reads strategy.gamma (1.0) instead. Try strategy.gamma=0.5",
        ),
        (["strategy.lam=1,2"], "strategy.lam=1: this option is named lam. Try lam=1."),
    ],
)
def test_an_option_that_no_strategy_of_a_sweep_has_is_refused(command, tmp_path, options, message):
    done = command("-m", *options, *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert not list(tmp_path.rglob("metrics.json"))


STRATEGIES = sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))


def listed(key, values):
    """Return the values of a grid as Hydra lists them."""
    parsed = OverridesParser.create().parse_override(f"{key}={values}").value()
    return parsed.filter(STRATEGIES) if isinstance(parsed, Glob) else values.split(",")


def test_the_sweep_over_strategies_leaves_out_three(composed):
    found = listed("strategy", composed("sweep=strategies").hydra.sweeper.params.strategy)
    assert set(STRATEGIES) - set(found) == {"icarl", "independent", "ewc_lora"}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_sweep_over_strategies_runs_in_every_scenario(command, scenario):
    done = command("-m", "sweep=strategies", f"scenario={scenario}", "seed=0", *SMALL)
    assert done.returncode == 0, done.stderr
    assert f"{len(STRATEGIES) - 3} runs in" in done.stderr


@pytest.mark.parametrize("preset", ["lam_curve", "fisher_lam", "samples", "strategies"])
def test_every_preset_is_a_grid_over_seeds_of_existing_keys(composed, preset):
    params = composed(f"sweep={preset}").hydra.sweeper.params
    assert params.seed == "0,1,2"
    for key, values in params.items():
        for value in listed(key, values):
            composed(f"{key}={value}")


def test_a_sweep_without_a_reference_shows_no_intransigence(command):
    done = command("-m", "strategy=finetune", "seed=0,1", "epochs=1", "data.tasks=2", "net.hidden=[16]", "output_dir=s")
    assert "intransigence" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "package"), [("submitit_local", "hydra_submitit_launcher"), ("ray", "hydra_ray_launcher")]
)
def test_a_sweep_runs_through_the_launchers_that_are_installed(command, tmp_path, launch, package):
    pytest.importorskip(f"hydra_plugins.{package}")
    done = command("-m", "seed=0,1", f"launch={launch}", *SMALL, "output_dir=sweep", imported=False)
    assert done.returncode == 0, done.stderr
    assert sorted(m["seed"] for m in metrics_of(tmp_path / "sweep").values()) == [0, 1]


@pytest.mark.parametrize(
    ("package", "choice", "plugin", "extra"),
    [
        ("hydra_submitit_launcher", "launch=slurm", "launcher submitit_slurm", "slurm"),
        ("hydra_ray_launcher", "launch=ray", "launcher ray", "ray"),
        ("hydra_optuna_sweeper", "sweep=optuna", "sweeper optuna", "optuna"),
    ],
)
def test_a_plugin_that_is_not_installed_says_what_to_install(command, package, choice, plugin, extra):
    if find_spec(f"hydra_plugins.{package}") is not None:
        pytest.skip(f"{package} is installed")
    done = command("-m", "seed=0,1", choice, *SMALL)
    assert done.returncode == 1
    assert (
        done.stderr
        == f'error: the {plugin} is not installed. Try pip install -e ".[{extra}]" in a checkout of clbench.\n'
    )


@pytest.mark.slow
def test_only_runs_of_the_selected_lam_are_finished(command, tmp_path):
    """lam is selected on the first tasks."""
    grid = ("strategy=finetune,ewc", "lam=1e3,1e9", "seed=0,1", "epochs=2", "data.tasks=3", "net.hidden=[16]")
    done = command("-m", *grid, "select_lam_on_first_tasks=2", "output_dir=sweep")
    assert done.returncode == 0, done.stderr
    found = metrics_of(tmp_path / "sweep")
    means = {}
    for lam in (1e3, 1e9):
        runs = [m for m in found.values() if m["strategy"].get("lam") == lam]
        means[lam] = sum(sum(m["validation"]["accuracy_matrix"][1][:2]) for m in runs) / 4
    best = max(means, key=lambda lam: means[lam])
    for metrics in found.values():
        whole = metrics["strategy"].get("lam") in (None, best)
        assert metrics["status"] == ("complete" if whole else "running")
        assert metrics["accuracy_matrix"][2][0] is not None or not whole
    assert f"{means[best]:.4f}" in done.stdout and done.stdout.count("selected") == 1
    assert f"{means[min(means, key=lambda lam: means[lam])]:.4f}" in done.stdout
    frame = read(tmp_path / "sweep")
    lost = frame[(frame.strategy == "ewc") & (frame.lam != best)]
    assert set(lost.status) == {"not selected"} and set(lost.problem) == {"not selected after 2 tasks"}
    assert set(frame.status) == {"complete", "not selected"}
    assert command("-m", *grid, "output_dir=sweep").returncode == 0  # without a selection, all are finished
    assert set(read(tmp_path / "sweep").status) == {"complete"}


def test_a_run_of_the_first_tasks_resumes_to_the_same_results(run, tmp_path):
    """They are the results of a run that learned all tasks without a stop."""
    whole = run(*SMALL, "data.tasks=3", folder="whole")
    assert run(*SMALL, "data.tasks=3", "stop_after_task=2", folder="parts")["status"] == "running"
    parts = run(*SMALL, "data.tasks=3", folder="parts")
    assert "resuming after task 2/3" in (tmp_path / "parts/train.log").read_text(encoding="utf-8")
    assert parts["accuracy_matrix"] == whole["accuracy_matrix"] and parts["status"] == "complete"


def test_a_sweep_of_the_first_tasks_resumes_without_that_option(command, tmp_path):
    """With the option, the sweep is done when the first tasks are learned."""
    sweep = ("-m", "strategy=finetune", "seed=0,1", *SMALL, "data.tasks=3", "output_dir=sweep")
    done = command(*sweep, "stop_after_task=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 tasks learned") == 2
    assert "2 are done, 0 will resume" in command(*sweep, "stop_after_task=2", "--dry-run").stderr
    rest = command(*sweep)
    assert "0 are done, 2 will resume, 0 are new" in rest.stderr
    assert {metrics["status"] for metrics in metrics_of(tmp_path / "sweep").values()} == {"complete"}


CHOICE = ("-m", "strategy=l2", *SMALL, "output_dir=sweep")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["select_lam_on_first_tasks=0"], "select_lam_on_first_tasks=0: expected an integer >= 1 or null, got 0."),
        (
            ["select_lam_on_first_tasks=1", "data.validation=0"],
            "select_lam_on_first_tasks=1: expected validation data, got data.validation=0. Try data.validation=0.1.",
        ),
        (
            ["select_lam_on_first_tasks=3"],
            "or null for all, got 3.). Rerun the same command to resume.",
        ),
    ],
)
def test_lam_is_not_selected_without_a_criterion(command, tmp_path, options, message):
    done = command(*CHOICE, "lam=1,2", *options)
    assert done.returncode == 1 and message in done.stderr
    assert not metrics_of(tmp_path / "sweep")


def test_a_lam_that_gives_non_finite_weights_is_not_selected(command, tmp_path):
    """The table has the reason."""
    done = command(*CHOICE, "lam=1e9,1", "optimizer=sgd", "steps=45", "select_lam_on_first_tasks=2")
    assert done.returncode == 0, done.stderr
    assert "failed: training on task 2 gave non-finite weights" in " ".join(done.stdout.split())
    (metrics,) = [m for m in metrics_of(tmp_path / "sweep").values() if m["status"] == "complete"]
    assert metrics["strategy"]["lam"] == 1


@pytest.mark.parametrize("more", [("seed=0,1",), ("lam=10,100,1000",)], ids=["seeds", "lams"])
def test_a_preset_with_other_values_uses_the_same_folder(command, more):
    where = [
        re.search(r"runs in (\S+)", command("-m", "sweep=lam_curve", "seed=0", *SMALL, *values, "--dry-run").stderr)[1]
        for values in (("lam=1,10",), ("lam=1,10", *more))
    ]
    assert where[0] == where[1]


@pytest.mark.parametrize("option", ["hydra.sweep.dir=mine", "++output_dir=mine", "output_dir='mine (1)'"])
def test_a_sweep_is_stored_in_the_given_folder(command, tmp_path, option):
    done = command("-m", "strategy=finetune", "seed=0,1", "steps=2", *SMALL, option)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("mine*/finetune-*/metrics.json"))) == 2


def test_runs_that_cannot_start_are_not_counted_by_a_dry_run(command):
    done = command("-m", "strategy=finetune,ewc", "samples=100000,20", *SMALL, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "; 1 runs cannot start and are not counted" in done.stderr


def test_two_sweeps_in_one_folder_count_their_own_runs(tmp_path):
    sweep_log.begin(tmp_path, {"a": "ewc seed=0", "b": "ewc seed=1"})
    assert sweep_log.end(tmp_path, "a", "0.5").startswith("ewc seed=0: 0.5 (1 of 2 done, about ")
    sweep_log.begin(tmp_path, {"c": "mas seed=0"})
    assert sweep_log.end(tmp_path, "b", "0.6") == "ewc seed=1: 0.6 (2 of 2 done)"
    assert sweep_log.end(tmp_path, "c", "0.7") == "mas seed=0: 0.7 (1 of 1 done)"
    assert sweep_log.end(tmp_path, "of another launcher", "0.7") == "of another launcher: 0.7"


def test_the_failure_of_a_run_is_kept_until_it_is_started_again(run, tmp_path):
    options = (*SMALL, "steps=45", "strategy=l2", "optimizer=sgd", "lam=1e9")
    with pytest.raises(Unstable):
        run(*options)
    first, *rest = (tmp_path / "run/failed.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("training on task 2 gave non-finite weights") and "Traceback" in "\n".join(rest)
    (row,) = read(tmp_path / "run").itertuples()
    assert row.status == "failed" and row.problem == first
    run(*options, "stop_after_task=1")
    assert not (tmp_path / "run/failed.txt").exists()


@pytest.mark.slow
def test_a_sweep_and_its_report_show_each_warning_once(command, tmp_path):
    done = command(
        "-m", "strategy=l2", "lam=1e-12,1e-13", "epochs=5", "data.tasks=2", "net.hidden=[16]", "output_dir=sweep"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning in 2 of 2 runs, such as l2 lam=1e-12 seed=0: ") == 1
    page = (main([str(tmp_path / "sweep"), "--output", str(tmp_path / "out")]) / "report.html").read_text(
        encoding="utf-8"
    )
    assert "<h2" in page and "penalty_negligible" in page


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (0, "stop_after_task=0: expected an integer >= 1"),
        (3, "stop_after_task=3: expected an integer from 1 to 2, the number of tasks"),
    ],
)
def test_the_number_of_first_tasks_is_checked(run, tasks, message):
    with pytest.raises(ConfigError, match=message):
        run(*SMALL, f"stop_after_task={tasks}")


WORST_TASK = "def worst_task(matrix):\n    return matrix[-1].min()\n"


def test_a_metric_is_added_to_the_runs_of_a_finished_sweep(command, tmp_path):
    sweep = ("-m", "strategy=finetune", "seed=0,1", "steps=2", *SMALL[1:], "output_dir=sweep")
    assert command(*sweep).returncode == 0
    (tmp_path / "mine.py").write_text(WORST_TASK, encoding="utf-8")
    done = command(*sweep, "metrics.extra=[mine.worst_task]", environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": worst_task") == 2
    for metrics in metrics_of(tmp_path / "sweep").values():
        assert metrics["worst_task"] == min(metrics["accuracy_matrix"][-1])
