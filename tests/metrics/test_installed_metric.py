"""A custom metric in an installed package of seven lines is in all output of runs and reports."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = {
    "my_metrics.py": '''\
def worst_task(matrix, initial, mid_task):
    """lowest accuracy on a task at the end"""
    return matrix[-1].min()
worst_task.higher_is_better = True
''',
    "pyproject.toml": """\
[project]
name = "my-metrics"
version = "1.0"
[project.entry-points."clbench.metrics"]
worst_task = "my_metrics:worst_task"
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[tool.setuptools]
py-modules = ["my_metrics"]
""",
}
SMALL = ("data.tasks=2", "steps=2", "net.hidden=[8]", "trainer=cpu", "strategy=finetune")


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Return the environment variables for a custom package that is built and installed next to the existing packages."""
    source, packages = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("packages")
    for name, text in PACKAGE.items():
        (source / name).write_text(text, encoding="utf-8")
    uv = ["uv", "pip", "install", "--python", sys.executable]
    pip = [sys.executable, "-m", "pip", "install"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(packages), str(source)]
    install = [*(uv if shutil.which("uv") else pip), *options]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    logged_out = {"NETRC": str(packages / "netrc"), "WANDB_CONFIG_DIR": str(packages / "config")}
    return {**kept, **logged_out, "PYTHONPATH": str(packages), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def called(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """Return the standard output of ``python ARGUMENTS`` in ``folder``."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reported(environment, tmp_path_factory) -> Path:
    """Return a folder with a run and its report, and the printed text of both."""
    folder = tmp_path_factory.mktemp("user")
    printed = called(environment, folder, "-m", "clbench.train", *SMALL, "logger=[csv,wandb]", "output_dir=run")
    (folder / "train.txt").write_text(printed, encoding="utf-8")
    (folder / "report.txt").write_text(called(environment, folder, "-m", "clbench.report", "run"), encoding="utf-8")
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "run/metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_installed_metric_is_in_metrics_json_and_the_summary(reported):
    there = results(reported)
    expected = min(there["accuracy_matrix"][-1])
    assert there["worst_task"] == expected
    assert there["validation"]["worst_task"] == min(there["validation"]["accuracy_matrix"][-1])
    meaning = "lowest accuracy on a task at the end"
    described = {"meaning": meaning, "higher_is_better": True, "format": "z.3f"}
    assert there["extra_metrics"] == {"worst_task": described}
    assert f"worst task           {expected:.3f}" in (reported / "train.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_metric_is_in_the_csv_and_wandb_logs(reported):
    expected = results(reported)["worst_task"]
    rows = list(
        csv.DictReader((reported / "run/logs/from_task_0/metrics.csv").read_text(encoding="utf-8").splitlines())
    )
    assert [float(row["cl/worst_task"]) for row in rows if row["cl/worst_task"]][-1] == expected
    assert float(rows[-1]["worst_task"]) == expected
    (run,) = reported.glob("run/wandb/offline-run-*")
    wandb = Path(sys.executable).with_name("wandb")
    inspected = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, timeout=120)
    assert inspected.returncode == 0, inspected.stderr
    records = [json.loads(line) for line in inspected.stdout.splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert {row["task"]: row["cl/worst_task"] for row in history if "cl/worst_task" in row}[2] == pytest.approx(
        expected
    )
    summaries = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert [update["worst_task"] for update in summaries if "worst_task" in update][-1] == pytest.approx(expected)


@pytest.mark.slow
def test_an_installed_metric_is_in_every_part_of_the_report(reported):
    expected, report = results(reported)["worst_task"], reported / "report"
    (row,) = csv.DictReader((report / "summary.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["worst_task"]) == pytest.approx(expected)
    assert f"${expected:.3f}$" in (report / "summary.tex").read_text(encoding="utf-8").split("worst task")[1]
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "worst task" in page and "lowest accuracy on a task at the end" in page
    assert "worst task" in (reported / "report.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_read_has_the_metric_with_and_without_its_package(reported, environment):
    code = "import clbench; row = clbench.read('run').iloc[0]; print(row.status, row.worst_task)"
    expected = f"complete {results(reported)['worst_task']}"
    assert called(environment, reported, "-c", code).strip() == expected
    without = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    assert called(without, reported, "-c", code).strip() == expected


@pytest.mark.slow
def test_a_run_finished_before_the_installation_has_the_metric(reported, environment, tmp_path):
    older = Path(shutil.copytree(reported / "run", tmp_path / "run"))
    there = results(tmp_path)
    expected = there.pop("worst_task")
    (older / "metrics.json").write_text(json.dumps({**there, "extra_metrics": {}}), encoding="utf-8")
    code = "import clbench; print(clbench.read('run').worst_task.item())"
    assert float(called(environment, tmp_path, "-c", code)) == expected


@pytest.mark.slow
def test_a_run_may_add_a_metric_and_use_it_as_objective(environment, tmp_path):
    """The configuration of the run names the metric."""
    (tmp_path / "mine.py").write_text(PACKAGE["my_metrics.py"].replace("worst_task", "worst"), encoding="utf-8")
    extra = "metrics.extra=[mine.worst]"
    called(environment, tmp_path, "-m", "clbench.train", *SMALL, extra, "objective=validation.worst", "output_dir=run")
    there = results(tmp_path)
    assert there["worst"] == there["worst_task"] == min(there["accuracy_matrix"][-1])
