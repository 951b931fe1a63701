"""The logs of a run in W&B, read with W&B's reader; the sweep for W&B agents; the predefined view."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from clbench.config.options import OPTIONS
from clbench.metrics.quality import QUALITIES
from clbench.strategies import EWC
from clbench.strategies.norms import gradient_norms
from clbench.training import loggers
from clbench.training.evaluation import Evaluation
from clbench.training.loggers import LoggerContext
from clbench.training.logging import QUANTILES, LoggingCallback, quantiles
from clbench.training.measures import ByteMeasure
from tests.conftest import replace_in

ROOT = Path(__file__).parents[2]
SHORT = ("data.tasks=3", "net.hidden=[16]", "epochs=1", "log_every=10", "strategy=ewc", "lam=1e3")
STEPS = 41  # steps per epoch


@pytest.fixture(autouse=True)
def _without_wandb_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in without_login(tmp_path).items():
        monkeypatch.setenv(name, value)


def without_login(folder: Path) -> dict[str, str]:
    """Return environment variables with which W&B finds neither a key nor settings."""
    return {"NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder / "config")}


def inspected(folder: Path) -> list[dict]:
    """Return the records of the run in ``folder``, as read by `wandb leet inspect`."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run([wandb, "leet", "inspect", "--json", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def offline(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*"))


def of(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def rows(records: list[dict]) -> list[dict]:
    return [row["item"] for row in of(records, "history")]


@pytest.fixture(scope="module")
def logged(request, tmp_path_factory):
    """An offline run: its metrics.json, its folder, its records and the process."""
    folder = tmp_path_factory.mktemp("logged")
    arguments = [*SHORT, "trainer=cpu", "logger=[csv,wandb]", f"output_dir={folder}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", "clbench.train", *arguments],
        env={**environment, **without_login(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (run,) = offline(folder)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8")), folder, inspected(run), done


@pytest.mark.slow
def test_wandb_reports_in_one_line_that_and_where_it_is_offline(logged):
    _, folder, _, done = logged
    lines = [line for line in done.stdout.splitlines() if "W&B" in line]
    assert lines == [f"W&B: offline, stored in {folder / 'wandb'} (view it with wandb leet, upload it with wandb sync)"]
    assert "wandb" not in done.stderr


@pytest.mark.slow
def test_a_run_has_a_readable_name_tags_and_a_flat_config(logged):
    """Runs can be filtered by the tags and the configuration."""
    metrics, _, records, _ = logged
    (run,) = of(records, "run")
    assert run["display_name"] == "ewc lam=1e3 fisher=exact fisher_batch=1 permuted_digits task seed=0"
    assert run["tags"] == ["ewc", "permuted_digits", "task"]
    config = run["config"]["update"]
    wanted = {"strategy": "ewc", "data": "permuted_digits", "scenario": "task", "lam": 1000, "fisher": "exact"}
    wanted |= {"samples": None, "seed": 0, "optimizer": "adam", "lr": 0.001, "epochs": 1, "tasks": 3}
    assert {key: config[key] for key in wanted} == wanted
    assert config["config_hash"] == metrics["config_hash"]
    assert config["yaml"]["strategy"]["label_samples"] == 1
    assert not {"output_dir", "data_dir"} & config["yaml"].keys()


@pytest.mark.slow
def test_metrics_are_plotted_over_tasks_and_losses_over_steps(logged):
    axes = {m.get("glob_name", m.get("name")): m["step_metric"] for m in of(logged[2], "metric")}
    assert axes["train/*"] == "step"
    for metrics in ("acc/*", "cl/*", "importance/*", "seconds/*", "memory/*", "accuracy_matrix"):
        assert axes[metrics] == "task"


@pytest.mark.slow
def test_every_entry_has_losses_gradients_and_their_ratios(logged):
    """The step never decreases."""
    steps = [row["step"] for row in rows(logged[2])]
    assert steps == sorted(steps)
    losses = [row for row in rows(logged[2]) if "train/loss" in row]
    assert [row["step"] for row in losses] == list(range(10, 3 * STEPS + 1, 10))
    names = {"loss", "task_loss", "penalty", "penalty_ratio", "loss_gradient", "penalty_gradient", "gradient_ratio"}
    for row in losses:
        assert {key.removeprefix("train/") for key in row if key.startswith("train/")} == names
        assert row["train/loss_gradient"] > 0
        assert (row["train/penalty_gradient"] > 0) == (row["task"] > 1)
        ratio = row["train/penalty_gradient"] / row["train/loss_gradient"]
        assert row["train/gradient_ratio"] == pytest.approx(ratio)
        assert row["train/penalty_ratio"] == pytest.approx(row["train/penalty"] / row["train/task_loss"])


@pytest.mark.slow
def test_after_each_task_all_metrics_are_logged(logged):
    """They are accuracies, metrics, importance, seconds, memory and the accuracy matrix."""
    metrics, folder, records, _ = logged
    after = [row for row in rows(records) if "acc/task_1" in row]
    assert [row["task"] for row in after] == [1, 2, 3]
    for i, row in enumerate(after):
        assert [row[f"acc/task_{j + 1}"] for j in range(i + 1)] == metrics["accuracy_matrix"][i][: i + 1]
        assert row["cl/average_accuracy"] == pytest.approx(sum(metrics["accuracy_matrix"][i][: i + 1]) / (i + 1))
        assert ("cl/forgetting" in row) == (i > 0)
        assert row["memory/rss_mib"] > 100
        assert {"seconds/train", "seconds/importance", "seconds/evaluation"} <= row.keys()
        layers = {"net.body.1", *(f"net.head.heads.{j}" for j in range(i + 1))}
        for kind in ("importance", "log10_importance"):
            assert {
                key.split("/")[1].split("._")[0].split(".bins")[0].split(".values")[0]
                for key in row
                if key.startswith(f"{kind}/")
            } == layers
        assert row["log10_importance/net.body.1._type"] == "histogram"
        assert (
            row["importance/net.body.1/median"] <= row["importance/net.body.1/q99"] <= row["importance/net.body.1/max"]
        )
        (run,) = offline(folder)
        assert (run / "files" / row["accuracy_matrix.path"]).stat().st_size > 5000
    last = after[-1]
    for key in ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy", "min_accuracy"):
        assert last[f"cl/{key}"] == pytest.approx(metrics[key])


@pytest.mark.slow
def test_the_summary_has_the_final_metrics(logged):
    """Their names are those of metrics.json."""
    metrics, folder, records, _ = logged
    summary = {}
    for update in of(records, "summary"):
        summary |= update["update"]
    for key in ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "worst_case_accuracy"):
        assert summary[key] == pytest.approx(metrics[key])
    assert summary["validation"]["average_accuracy"] == pytest.approx(metrics["validation"]["average_accuracy"])
    for key in ("train", "total"):
        assert summary["seconds"][key] == pytest.approx(metrics["seconds"][key], abs=0.5)
    assert summary["warnings"] == metrics["warnings"] == []
    (run,) = offline(folder)
    table = json.loads((run / "files" / summary["accuracy_table"]["path"]).read_text(encoding="utf-8"))
    assert table["columns"] == ["after_task", "task", "accuracy"]
    assert table["data"] == [
        [i + 1, j + 1, a] for i, row in enumerate(metrics["accuracy_matrix"]) for j, a in enumerate(row)
    ]


@pytest.mark.slow
def test_csv_has_the_same_numbers(logged):
    import csv

    _, folder, records, _ = logged
    cells = [
        {k: float(v) for k, v in row.items() if v}
        for row in csv.DictReader((folder / "logs/from_task_0/metrics.csv").read_text(encoding="utf-8").splitlines())
    ]
    for ours, theirs in zip(cells, rows(records), strict=False):
        assert {k: theirs[k] for k in ours} == pytest.approx(ours)
    assert cells[-1]["validation.average_accuracy"] > 0


def test_tensorboard_has_the_same_numbers(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(*SHORT, "logger=tensorboard")
    events = EventAccumulator(str(tmp_path / "run/tensorboard/from_task_0"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/gradient_ratio", "acc/task_3", "cl/forgetting", "importance/net.body.1/max", "average_accuracy"} <= {
        *tags
    }


def test_nothing_is_measured_between_two_entries(run):
    """The profiler of Python counts the calls, so no code is replaced."""
    counted = []

    def count(frame, event, argument):
        measures = event == "call" and frame.f_code is gradient_norms.__code__
        if (
            measures and frame.f_back.f_globals["__name__"] == "clbench.training.logging"
        ):  # the penalty monitor measures too
            counted.append(1)

    sys.setprofile(count)
    try:
        run(*SHORT, "logger=csv")
        assert len(counted) == 3 * STEPS // 10
        run(*SHORT, "logger=none", folder="none")
        assert len(counted) == 3 * STEPS // 10
    finally:
        sys.setprofile(None)


def test_values_of_another_quality_are_logged_under_its_name(tmp_path):
    evaluation = Evaluation(2, measure=ByteMeasure)
    evaluation.matrices["test"][:] = torch.tensor([[0.5, 4.0], [0.5, 0.25]])
    logs = LoggingCallback(EWC(lam=1.0), evaluation)
    logger = CSVLogger(tmp_path, name="logs", version="")
    with logs.to([logger]):
        logs.after_task(1, {"seconds": {"total": 1.0}})
    header, row = ((tmp_path / "logs/metrics.csv").read_text(encoding="utf-8")).splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert values["bits_per_byte/task_1"] == "0.5" and values["bits_per_byte/task_2"] == "0.25"
    assert not any(name.startswith("acc/") for name in values)


def test_wandb_has_the_keys_of_another_quality(tmp_path):
    about = {**dict.fromkeys(OPTIONS), "strategy": "ewc", "data": "text8", "scenario": "task", "seed": 0}
    board = loggers.wandb(LoggerContext(tmp_path, tmp_path, 0, {**about, "config_hash": "abc"}, print))
    matrix = [[2.0, 8.0], [3.0, 2.5]]
    board.log_task({"task": 2}, torch.tensor(matrix), QUALITIES["bits_per_byte"], {}, 5)
    quality = {"name": "bits_per_byte", "direction": "lower"}
    board.log_results({"quality": quality, "quality_matrix": matrix, "average_quality": 2.75, "warnings": []})
    board.finalize("success")
    (run,) = offline(tmp_path)
    records = inspected(run)
    summary = {}
    for update in of(records, "summary"):
        summary |= update["update"]
    assert summary["average_quality"] == 2.75 and "accuracy_table" not in summary
    table = json.loads((run / "files" / summary["quality_table"]["path"]).read_text(encoding="utf-8"))
    assert table["columns"] == ["after_task", "task", "quality"] and table["data"][1] == [1, 2, 8.0]
    assert list((run / "files/media/images").glob("quality_matrix_*.png"))


def test_quantiles_are_among_the_values():
    assert quantiles(torch.arange(1, 1001).double()) == dict(zip(QUANTILES, (500, 900, 990, 1000), strict=True))
    assert quantiles(torch.tensor([3.0])) == dict.fromkeys(QUANTILES, 3.0)


@pytest.mark.slow
def test_a_run_resumed_offline_keeps_its_id_and_its_step(command, tmp_path):
    """The step continues where the first part ended."""
    options = (*SHORT, "trainer=cpu", "logger=wandb", "output_dir=run")
    assert command(*options).returncode == 0
    (tmp_path / "run/checkpoints/task_2.ckpt").unlink()
    replace_in(tmp_path / "run/metrics.json", '"complete"', '"running"')
    assert command(*options).returncode == 0
    parts = offline(tmp_path / "run")
    assert len(parts) == 2 and len({part.name.rpartition("-")[2] for part in parts}) == 1
    first, second = (rows(inspected(part)) for part in parts)
    kept = [row for row in first if row["step"] <= 2 * STEPS]
    steps = [row["step"] for row in kept + second]
    assert steps == sorted(steps)
    assert steps[-1] == 3 * STEPS


@pytest.mark.slow
def test_the_runs_of_a_sweep_share_a_directory_and_a_group(command, tmp_path):
    """The line on the offline mode is printed once."""
    done = command("-m", "seed=0,1", *SHORT, "trainer=cpu", "logger=wandb", "output_dir=lams/first")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B: offline") == 1
    runs = [of(inspected(part), "run")[0] for part in offline(tmp_path / "lams/first")]
    assert [run["run_group"] for run in runs] == ["lams/first"] * 2
    assert [run["config"]["update"]["seed"] for run in runs] == [0, 1]


@pytest.mark.slow
def test_an_agent_of_a_wandb_sweep_starts_a_run_with_its_id(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "scripts/wandb_sweep.yaml").read_text(encoding="utf-8"))
    chosen = {name: {"value": p["values"][0]} for name, p in sweep["parameters"].items()}
    macros = create_sweep_command_args({"args": chosen})
    macros |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [sweep["program"]]}
    words = []
    for word in create_sweep_command(sweep["command"]):  # as in wandb_agent.py
        words += macros.get(word[2:-1], []) if word.startswith("${") and word.endswith("}") else [word]
    environment = {**os.environ, "WANDB_RUN_ID": "abc123", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, *SHORT[:4]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (part,) = offline(tmp_path / "outputs/sweep/abc123")
    (run,) = of(inspected(part), "run")
    assert run["run_id"] == "abc123"
    assert {name: run["config"]["update"][name] for name in chosen} == {n: p["value"] for n, p in chosen.items()}
    assert sweep["metric"]["name"] == "validation.average_accuracy"


def view(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "scripts/wandb_workspace.py"), *arguments]
    return subprocess.run(script, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_every_metric_of_the_ready_view_is_one_that_a_run_logs(logged):
    pytest.importorskip("wandb_workspaces")
    import re

    done = view("me", "--project", "p", "--tasks", "3", "--print")
    assert done.returncode == 0, done.stderr
    view_ = json.loads(done.stdout)
    assert (view_["entity"], view_["project"]) == ("me", "p")
    history = {key for row in rows(logged[2]) for key in row}
    final = {key for update in of(logged[2], "summary") for key in update["update"]} | {"validation.average_accuracy"}
    config = of(logged[2], "run")[0]["config"]["update"]
    panels = [p for section in view_["spec"]["section"]["panelBankConfig"]["sections"] for p in section["panels"]]
    assert len(panels) > 15
    for panel in panels:
        shown = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            assert shown["xAxis"] in ("task", "step")
            assert {*shown["metrics"]} <= history
            if pattern := shown.get("metricRegex"):
                assert any(re.search(pattern, key) for key in history)
        elif panel["viewType"] == "Bar Chart":
            assert {*shown["metrics"]} <= final
        for accessor in [*(c["accessor"] for c in shown.get("columns", [])), shown.get("yAxis", "summary:forgetting")]:
            where, _, name = accessor.partition(":")
            assert name in final if where == "summary" else name.removesuffix(".value") in config


@pytest.mark.slow
def test_without_a_login_the_view_is_not_saved_and_says_so():
    pytest.importorskip("wandb_workspaces")
    done = view("me")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "expected a W&B login to save the view. Run wandb login, or print the specification with --print."
    )
