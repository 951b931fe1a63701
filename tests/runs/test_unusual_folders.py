"""Damaged, foreign and misplaced files in run folders: each is repaired, or refused in one line before any training."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clbench
from clbench.errors import ConfigError
from tests.conftest import others_slow, stopped_after

TINY = ["data.tasks=2", "steps=2", "net.hidden=[8]", "trainer=cpu", "logger=none", "samples=5"]
LAST = "checkpoints/task_1.ckpt"


class Code:
    """An object that writes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a complete run and its metrics."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, clbench.run(TINY, folder, quiet=True)


def stored(name, content):
    """Return a function that writes ``content`` to the file ``name`` of a folder, in the place of what is there."""

    def change(folder):
        path = folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.write_bytes(content)

    return change


def edited(**values):
    """Return a function that replaces ``values`` in metrics.json."""

    def change(folder):
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        (folder / "metrics.json").write_text(json.dumps(content | values), encoding="utf-8")

    return change


def saved(state):
    """Return a function that replaces the newest task checkpoint by ``state``."""
    return lambda folder: torch.save(state, folder / LAST)


def with_keys(**values):
    """Return a function that replaces ``values`` in the newest task checkpoint."""

    def change(folder):
        torch.save(torch.load(folder / LAST, weights_only=True) | values, folder / LAST)

    return change


def folder_at(name):
    """Return a function that puts a folder in the place of the file ``name``."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def pipe_at(name):
    """Return a function that puts a named pipe in the place of the file ``name``."""

    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def without_anchor(folder):
    state = torch.load(folder / LAST, weights_only=True)
    del state["strategy"]["anchor"]
    torch.save(state, folder / LAST)


def truncated(folder):
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-500])


def flipped(folder):
    """Flip the sign of a number in the middle of a checkpoint."""
    content = bytearray((folder / LAST).read_bytes())
    weights = torch.load(folder / LAST, weights_only=True)["learner"]["net.body.1.weight"]
    content[content.index(weights.numpy().tobytes()) + 43] ^= 0x80
    (folder / LAST).write_bytes(content)


def renamed(folder):
    shutil.copy(folder / "checkpoints/task_0.ckpt", folder / LAST)


AFTER_1 = "Delete checkpoints/task_1.ckpt to resume after task 1."
AGAIN = "Remove the file and rerun the same command"
ELSEWHERE = "Move it away, or try another output_dir."

REFUSED = {
    "empty checkpoint": (stored(LAST, b""), rf"task_1.ckpt: the file is empty. {AFTER_1}"),
    "checkpoint of noise": (stored(LAST, bytes(range(256)) * 9), f"written by another program .* {AFTER_1}"),
    "truncated checkpoint": (truncated, f"the file is damaged .* {AFTER_1}"),
    "flipped sign bit": (flipped, rf"task_1.ckpt: the file is damaged \(wrong checksum of data/\d+\). {AFTER_1}"),
    "pickle with code": (stored(LAST, pickle.dumps(Code())), f"objects that could run code. {AFTER_1}"),
    "checkpoint with code": (saved({"learner": Code()}), f"objects that could run code. {AFTER_1}"),
    "tensors of another program": (saved([torch.ones(2)]), f"expected a checkpoint of clbench, .* {AFTER_1}"),
    "checkpoint of another version": (with_keys(schema=0), "expected schema 1, got schema 0 .* Try the version that wrote it."),
    "checkpoint of another net": (with_keys(learner={}), "task_1.ckpt: the checkpoint does not fit the net.* Restore the code"),
    "checkpoint of another task": (renamed, f"expected the state of task index 1, got that of 0. {AFTER_1}"),
    "folder as checkpoint": (folder_at(LAST), f"task_1.ckpt: expected a file, found a folder. {ELSEWHERE}"),
    "folder as mid-task checkpoint": (folder_at("checkpoints/mid_task_1.ckpt"), "expected a file, found a folder."),
    "folder as metrics.json": (folder_at("metrics.json"), "metrics.json: expected a file, found a folder."),
    "folder as accuracy_matrix.csv": (folder_at("accuracy_matrix.csv"), "expected a file, found a folder."),
    "folder as config.json": (folder_at("config.json"), "config.json: expected a file, found a folder."),
    "folder as train.log": (folder_at("train.log"), "train.log: expected a file, found a folder."),
    "folder as lock": (folder_at(".lock"), "lock: expected a file, found a folder."),
    "folder as failed.txt": (folder_at("failed.txt"), "failed.txt: expected a file, found a folder."),
    "file as checkpoints": (stored("checkpoints", b""), f"checkpoints: expected a folder, found a file .* {ELSEWHERE}"),
    "file as .hydra": (stored(".hydra", b""), "hydra: expected a folder, found a file"),
    "file as logs": (stored("logs", b""), "logs: expected a folder, found a file"),
    "empty metrics.json": (stored("metrics.json", b""), f"expected a metrics.json of clbench .* {AGAIN}"),
    "nested metrics.json": (stored("metrics.json", b"[" * 100_000), f"expected a metrics.json of clbench .* {AGAIN}"),
    "metrics.json of bytes": (stored("metrics.json", b"\xff\xfe\x00"), f"expected a metrics.json of clbench .* {AGAIN}"),
    "metrics.json without keys": (edited(seconds={}), rf"\(seconds.train is missing\). {AGAIN}"),
    "unknown status": (edited(status="x"), rf"\(status: expected one of running, .*, got 'x'\). {AGAIN}"),
    "text as extra metrics": (edited(extra_metrics="x"), rf"\(extra_metrics: expected an object, got 'x'\). {AGAIN}"),
    "empty state of the strategy": (with_keys(strategy={}), "the state of EWC is empty"),
    "importance without anchor": (without_anchor, "the checkpoint does not fit the net.*KeyError: 'anchor'"),
    "text as state": (with_keys(optimizer="x"), rf"\(optimizer: expected an object, got 'x'\). {AFTER_1}"),
    "checkpoint without its step": (with_keys(step=None), rf"\(step is missing\). {AFTER_1}"),
    "pipe as checkpoint": (pipe_at(LAST), f"task_1.ckpt: expected a file, found a device. {ELSEWHERE}"),
    "pipe as metrics.json": (pipe_at("metrics.json"), "metrics.json: expected a file, found a device."),
    "pipe as config.json": (pipe_at("config.json"), "config.json: expected a file, found a device."),
    "edited average": (edited(average_accuracy=0.99), f"average_accuracy is 0.99, but the accuracy matrix gives .* {AGAIN}"),
    "edited matrix": (edited(accuracy_matrix=[[0.5]]), f"data.tasks has 2 tasks, .* {AGAIN}"),
}  # fmt: skip


@pytest.mark.parametrize("name", others_slow(REFUSED, "empty checkpoint", "flipped sign bit", "edited average"))
def test_a_damaged_run_is_refused_with_the_remedy(whole, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    change, message = REFUSED[name]
    folder = stopped_after(1, whole[0], tmp_path / "run")
    change(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*.ckpt") if file.is_file()}
    with pytest.raises(ConfigError, match=message) as caught:
        clbench.run(TINY, folder, quiet=True)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in before} == before
    assert not (tmp_path / "canary").exists()


REPAIRED = {
    "copy of a checkpoint": lambda f: shutil.copy(f / LAST, f / "checkpoints/task_1 (copy).ckpt"),
    "deleted checkpoint": lambda f: (f / LAST).unlink(),
    "deleted checkpoints": lambda f: shutil.rmtree(f / "checkpoints"),
    "foreign files": lambda f: [(f / "checkpoints" / n).write_bytes(b"") for n in ("task_x.ckpt", "task_.ckpt", "a")],
    "missing metrics.json": lambda f: (f / "metrics.json").unlink(),
    "missing config.json": lambda f: (f / "config.json").unlink(),
    "broken config.json": stored("config.json", b"{"),
    "missing accuracy_matrix.csv": lambda f: (f / "accuracy_matrix.csv").unlink(),
    "lock of a dead process": stored(".lock", b"123456"),
}


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("name", others_slow(REPAIRED, "copy of a checkpoint", "broken config.json"))
def test_a_run_that_lost_nothing_is_repaired(whole, tmp_path, name, is_complete):
    folder = stopped_after(1, whole[0], tmp_path / "run")
    if is_complete:
        shutil.copy(whole[0] / "metrics.json", folder)
    REPAIRED[name](folder)
    results = clbench.run(TINY, folder, quiet=True)
    assert (results["status"], results["accuracy_matrix"]) == ("complete", whole[1]["accuracy_matrix"])
    for file in ("accuracy_matrix.csv", "config.json"):
        assert (folder / file).stat().st_size == (whole[0] / file).stat().st_size or file == "config.json"
        assert (folder / file).read_text(encoding="utf-8").count("\n") > 2


def a_link(folder, target):
    folder.symlink_to(target)
    return folder


def a_sweep(folder):
    folder.mkdir()
    (folder / "sweep.json").write_text("{}", encoding="utf-8")
    return folder


def a_file(folder):
    folder.write_text("", encoding="utf-8")
    return folder


PLACES = {
    "folder of a sweep": (a_sweep, "expected a folder for one run, found a sweep. Add -m to continue the sweep"),
    "folder with runs": (lambda f: f.parent, "expected a folder for one run, found a run in whole/. Add -m"),
    "inside a run": (lambda f: f.parent / "whole/more", "expected a folder that is not inside a run, but .*/whole is"),
    "deep inside a run": (lambda f: f.parent / "whole/more/and/more", "expected a folder that is not inside a run"),
    "a file": (a_file, "expected a folder, but it is a file"),
    "below a file": (lambda f: a_file(f) / "a", "a: Not a directory. Move away what is at this path"),
    "dangling link": (lambda f: a_link(f, f.parent / "nowhere"), "a: File exists. Move away what is at this path"),
    "looping link": (lambda f: a_link(f, f), "a: File exists. Move away what is at this path"),
    "below a looping link": (lambda f: a_link(f, f) / "b", "b: Too many levels of symbolic links."),
    "too long": (lambda f: f / ("x" * 300), "x: File name too long. Try a shorter path."),
    "too long altogether": (lambda f: Path(f, *["y" * 200] * 30), "y: File name too long. Try a shorter path."),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other messages and no links")
@pytest.mark.parametrize("name", others_slow(PLACES, "folder of a sweep", "inside a run", "dangling link"))
def test_a_folder_that_cannot_be_used_is_refused(whole, tmp_path, name):
    shutil.copytree(whole[0], tmp_path / "whole")
    place, message = PLACES[name]
    with pytest.raises(ConfigError, match=message) as caught:
        clbench.run(TINY, place(tmp_path / "a"), quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of the size of a file")
@pytest.mark.parametrize("limit", [1, 3, 8])  # kB: the configuration, a checkpoint, and a figure do not fit
def test_a_run_without_space_stops_in_one_line_and_resumes(whole, tmp_path, limit):
    command = f"ulimit -f {limit}; exec {sys.executable} -m clbench.train output_dir=run {shlex.join(TINY)}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: ") and "File too large. Raise the limit" in last and "Traceback" not in done.stderr
    results = clbench.run(TINY, tmp_path / "run", quiet=True)
    assert (results["status"], results["accuracy_matrix"]) == ("complete", whole[1]["accuracy_matrix"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has other messages")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output_dir=file"], "file: File exists. Move away what is at this path"),
        (["output_dir=file/below"], "file/below: Not a directory. Move away what is at this path"),
        (["-m", "output_dir=file"], "file: File exists. Move away what is at this path"),
        (["-m", "output_dir=run"], "expected a folder for a sweep, found a run. Remove -m"),
        (["-m", "hydra.sweep.dir=run"], "expected a folder for a sweep, found a run. Remove -m"),
        (["-m", "output_dir=run/more"], "expected a folder that is not inside a run"),
        (["output_dir=sweep"], "expected a folder for one run, found a sweep. Add -m"),
        (["hydra.run.dir=sweep"], "expected a folder for one run, found a sweep. Add -m"),
    ],
)
def test_the_command_reports_a_misplaced_folder_in_one_line(whole, tmp_path, command, arguments, message):
    shutil.copytree(whole[0], tmp_path / "run")
    a_file(tmp_path / "file"), a_sweep(tmp_path / "sweep")
    done = command(*arguments, *TINY)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"noise", None], ids=["empty", "noise", "truncated"])
def test_a_damaged_shared_first_task_is_trained_again(tmp_path, capsys, content):
    options = ["steps=4", "data.tasks=2", "trainer=cpu", "logger=none"]
    first = clbench.run(["strategy=mas", *options], tmp_path / "a", quiet=True, sweep=tmp_path)
    (shared,) = tmp_path.glob("shared_first_tasks/*.ckpt")
    shared.write_bytes(shared.read_bytes()[:-900] if content is None else content)
    again = clbench.run(["strategy=mas", *options], tmp_path / "b", quiet=True, sweep=tmp_path)
    reused = clbench.run(["strategy=l2", *options], tmp_path / "c", quiet=True, sweep=tmp_path)
    assert again["accuracy_matrix"] == first["accuracy_matrix"]
    assert again["seconds"]["shared"] == 0 < reused["seconds"]["shared"]
    assert f"{shared.name}: " in (warning := capsys.readouterr().err)
    assert "The first task is trained again." in warning
