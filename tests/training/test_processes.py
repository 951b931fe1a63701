"""Killed processes, and runs with several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

import clbench
from tests.forked import FORK
from tests.test_train import same_checkpoint

pytestmark = pytest.mark.slow

SHORT = (
    "epochs=3",
    "data.tasks=4",
    "net.hidden=[32]",
    "net.dropout=0.2",
    "optimizer.reset=false",
    "trainer=cpu",
    "threads=1",
)
TWO = ("data.tasks=2", "net.hidden=[32]", "batch_size=34", "threads=1")


def start(folder, *arguments, cwd, stderr=subprocess.DEVNULL):
    return subprocess.Popen(
        [sys.executable, "-m", "clbench.train", *SHORT, *arguments, f"output_dir={folder}"],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # background processes ignore SIGINT
    )


def finished_tasks(folder):
    return len(list(folder.glob("checkpoints/task_*.ckpt")))


def test_a_command_killed_twice_resumes_bit_identical(run, tmp_path):
    a = run("strategy=ewc", *SHORT, folder="whole")
    again = tmp_path / "again"
    rng = random.Random(0)
    for wanted in (1, 2):
        process = start(again, "strategy=ewc", cwd=tmp_path)
        while finished_tasks(again) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        assert wanted <= finished_tasks(again) < 4
    assert start(again, "strategy=ewc", cwd=tmp_path).wait(timeout=300) == 0
    b = json.loads((again / "metrics.json").read_text(encoding="utf-8"))
    for key in ("accuracy_matrix", "initial_accuracy", "per_task", "validation", "importance", "config_hash", "status"):
        assert a[key] == b[key], key
    states = [torch.load(tmp_path / n / "checkpoints/task_3.ckpt", weights_only=True) for n in ("whole", "again")]
    for part in ("learner", "strategy"):
        assert same_checkpoint(states[0][part], states[1][part])
    assert not list(again.rglob("*.part"))


def test_ctrl_c_ends_with_one_line_and_keeps_finished_tasks(tmp_path):
    with (tmp_path / "stderr").open("w", encoding="utf-8") as stderr:
        process = start("here", "epochs=50", cwd=tmp_path, stderr=stderr)
        while finished_tasks(tmp_path / "here") < 1 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    message = "Interrupted. Rerun the same command with output_dir=here to resume.\n"
    assert (code, (tmp_path / "stderr").read_text(encoding="utf-8")) == (1, message)
    assert finished_tasks(tmp_path / "here") >= 1


# --- two processes ------------------------------------------------------------------------------------------------------

EWC = ("strategy=ewc", "epochs=2")
OTHERS = {
    # a task has 1,293 examples; two processes train on 1,292 of them, but measure and evaluate all
    "ewc of some": (*EWC, "samples=101"),
    "mas online": ("strategy=mas", "strategy.online=true", "steps=20", "optimizer=sgd"),
    # complete batches, which two processes divide
    "si": ("strategy=si", "optimizer=sgd", "epochs=1", "data.examples_per_task=1224"),
    "kfac_ewc": ("strategy=kfac_ewc", "lam=10", "optimizer=sgd", "epochs=1", "data.examples_per_task=1224"),
}


def rank(number, port, runs):
    """Run one of two processes that Lightning does not start itself, as with Slurm or torchrun."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
    torch.set_num_threads(1)
    for overrides, path in runs:
        clbench.run(overrides, path)


def test_two_processes_of_the_command_give_the_results_of_one(run, command, tmp_path):
    run(*TWO, *EWC, folder="one")
    done = command(*TWO, *EWC, "trainer=ddp", "output_dir=two", imported=False)
    assert done.returncode == 0, done.stderr
    assert_alike("ewc of all", tmp_path / "one", tmp_path / "two")


def test_two_processes_give_the_results_of_one_for_every_measure(run, tmp_path):
    for name, options in OTHERS.items():
        run(*TWO, *options, folder=f"one/{name}")
    runs = [([*TWO, *options, "trainer=ddp"], tmp_path / "two" / name) for name, options in OTHERS.items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [FORK.Process(target=rank, args=(number, port, runs)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=240)
    assert [process.exitcode for process in ranks] == [0, 0]
    for name in OTHERS:
        assert_alike(name, tmp_path / "one" / name, tmp_path / "two" / name)


def assert_alike(name, one, two):
    metrics = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (one, two)]
    for a, b in zip(*(m["importance"] for m in metrics), strict=True):
        assert (a["examples"], a["bytes"]) == (b["examples"], b["bytes"])
        assert a["total"] == pytest.approx(b["total"], rel=0.05)
    r, s = (torch.tensor(m["accuracy_matrix"]) for m in metrics)
    assert (r - s).abs().max() < 0.03
    states = [torch.load(folder / "checkpoints/task_1.ckpt", weights_only=True) for folder in (one, two)]
    f, g = (measured(state["strategy"]) for state in states)
    for key in f:
        if "optimizer=sgd" in OTHERS.get(name, ()):
            torch.testing.assert_close(f[key], g[key], rtol=1e-3, atol=1e-5 * float(f[key].max()))
        else:  # Adam makes large steps for gradients that are zero except for rounding
            assert (f[key] - g[key]).abs().sum() < 0.2 * f[key].abs().sum() + 1e-9, key


def measured(state):
    """Return the tensors of the penalty that were measured, by name."""
    factors = [(name, *p[:2]) for name, *_, products in state.get("layers", []) for p in products]
    named = {f"{name} {i} {j}": t for i, (name, *pair) in enumerate(factors) for j, t in enumerate(pair)}
    return {**state.get("importance", {}), **named}
