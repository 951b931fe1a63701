"""A run that is killed by SIGKILL leaves no half-written file and resumes bit-identically."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import clbench
from tests.forked import FORK
from tests.test_train import STRATEGIES, same_checkpoint

pytestmark = pytest.mark.slow

SMALL = ("data.tasks=2", "data.examples_per_task=70", "net.hidden=[12]", "net.dropout=0.3", "optimizer.reset=false")
OFTEN = ("epochs=2", "batch_size=16", "save_every=2", "trainer=cpu", "logger=none", "threads=1")


def work(overrides, path, sweep, kill):
    """Train the run in ``path``; kill the process before it renames file ``kill``, or when a file has ``kill`` bytes."""
    if isinstance(kill, int):  # the kernel kills a process that writes a larger file
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (kill, kill))
    elif kill is not None:

        def hook(event, arguments):
            if event == "os.rename" and fnmatch(
                Path(arguments[1]).name, kill
            ):  # the file is written, but has its temporary name
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    torch.set_num_threads(1)
    clbench.run(overrides, path, quiet=True, sweep=sweep)


@pytest.fixture
def start(tmp_path):
    """``start("strategy=si", folder="a")`` starts a process that trains a run."""

    def go(*overrides, folder, sweep=None, kill=None):
        sweep = None if sweep is None else tmp_path / sweep
        arguments = ([*SMALL, *overrides, *OFTEN], (sweep or tmp_path) / folder, sweep, kill)
        process = FORK.Process(target=work, args=arguments)
        process.start()
        return process

    return go


def finish(process):
    process.join(timeout=120)
    return process.exitcode


def assert_whole(folder):
    """Assert that every file with a final name is complete."""
    read = {
        ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
        ".yaml": lambda file: yaml.safe_load(file.read_text(encoding="utf-8")),
        ".ckpt": lambda file: torch.load(file, weights_only=True),
        ".png": lambda file: Image.open(file).load(),
        ".csv": lambda file: file.read_text(encoding="utf-8").endswith("\n") or 1 / 0,
    }
    for file in folder.rglob("*"):
        if file.suffix in read:
            read[file.suffix](file)


def assert_same(a, b):
    assert_whole(b)
    assert not list(b.rglob("*.part")) and not list(b.rglob("mid_task_*"))
    first, second = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (a, b))
    for key in first.keys() - {"seconds", "shared_first_task"}:
        assert first[key] == second[key], key
    first, second = (torch.load(folder / "checkpoints/task_1.ckpt", weights_only=True) for folder in (a, b))
    assert same_checkpoint({**first, "shared_first_task": None}, {**second, "shared_first_task": None})


WRITTEN = (
    *("config.yaml", "mid_task_0.ckpt", 9000, "task_0.ckpt", "metrics.json", "mid_task_1.ckpt", 9000, "task_1.ckpt"),
    *("accuracy_matrix.csv", "accuracy_over_tasks.png", "metrics.json"),
)


def test_a_run_killed_while_writing_a_file_resumes_bit_identical(start, tmp_path):
    """No file is half written, whichever file the run was writing when it was killed."""
    assert finish(start("strategy=ewc", folder="whole")) == 0
    killed = tmp_path / "killed"
    for kill in WRITTEN:
        code = finish(start("strategy=ewc", folder="killed", kill=kill))
        assert code == (-signal.SIGXFSZ if isinstance(kill, int) else -signal.SIGKILL), kill
        (part,) = killed.rglob("*.part")  # files of earlier processes have been removed
        assert isinstance(kill, int) or f".{kill}." in part.name
        assert_whole(killed)
    assert finish(start("strategy=ewc", folder="killed")) == 0
    assert_same(tmp_path / "whole", killed)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_killed_at_a_random_moment_resumes_bit_identical(start, tmp_path, strategy):
    began = time.perf_counter()
    assert finish(start(f"strategy={strategy}", folder="whole")) == 0
    length = time.perf_counter() - began
    process = start(f"strategy={strategy}", folder="killed")
    time.sleep(random.Random(strategy).random() * length)
    process.kill()
    process.join()
    assert_whole(tmp_path / "killed")
    assert finish(start(f"strategy={strategy}", folder="killed")) == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_no_run_waits_for_a_killed_process(start, tmp_path):
    """The killed process was training or writing the first task that other runs share."""
    assert finish(start("strategy=ewc", folder="alone")) == 0
    holder = start("strategy=mas", folder="0", sweep="s", kill=f"{'?' * 16}.ckpt")
    while not list((tmp_path / "s").glob("shared_first_tasks/.*.lock")):
        time.sleep(0.01)
    waiting = start("strategy=ewc", folder="1", sweep="s")
    assert finish(holder) == -signal.SIGKILL
    assert finish(waiting) == 0
    assert_same(tmp_path / "alone", tmp_path / "s/1")
    (name,) = (file.name for file in (tmp_path / "s").glob("shared_first_tasks/*") if not file.name.endswith(".lock"))
    assert json.loads((tmp_path / "s/1/metrics.json").read_text(encoding="utf-8"))[
        "shared_first_task"
    ] == name.removesuffix(".ckpt")
