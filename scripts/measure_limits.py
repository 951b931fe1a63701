"""Measure time, memory and disk space of large reports and runs, and print the table of docs/limits.md.

    PYTHONPATH=scripts python scripts/measure_limits.py [NAME ...]

The names are the keys of MEASUREMENTS. Time is that of the CPU in one process with one thread, including imports, and does not
depend on other programs. Memory is the largest resident set. Disk space is that of the report or the run folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RUNS = Path(__file__).parents[1] / "tests" / "finished_runs" / "task_incremental"

CLASSES = """# @package _global_
defaults:
  - /data/base/sequence@data
  - _self_
data:
  name: random
  source: {_target_: measure_limits.RandomImages, _partial_: true}
  split: {_target_: clbench.data.split, _partial_: true}
  tasks: 10
"""

SMALL = ("net.hidden=[64]", "epochs=1", "trainer=cpu", "logger=none", "threads=1", "output_dir=out")
TASKS = ("data.tasks=200", "data.examples_per_task=100", *SMALL)


class RandomImages:
    """Images of 8x8 random pixels in 500 classes: ten of each class for training and two for testing."""

    def __init__(self, root: str | None = None, train: bool = True, download: bool = False) -> None:
        number = 10 if train else 2
        self.targets = [label for label in range(500) for _ in range(number)]
        self.data = np.random.default_rng(int(train)).integers(0, 256, (500 * number, 8, 8), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.targets)


def write_runs(methods: int, lams: int, seeds: int = 5) -> None:
    """Write run folders that differ in an option of the strategy, lam and the seed."""
    run = next(RUNS.glob("ewc-seed0-*"))
    content = json.loads((run / "config.json").read_text(encoding="utf-8"))
    for number in range(methods * lams * seeds):
        rest, seed = divmod(number, seeds)
        content["config"]["strategy"]["chunk"], lam = divmod(rest, lams)
        content["config"] |= {"seed": seed, "lam": 10.0 ** (lam / 8)}
        copy = Path("runs", str(number))
        copy.mkdir(parents=True)
        (copy / "config.json").write_text(json.dumps(content), encoding="utf-8")
        shutil.copy(run / "metrics.json", copy)


def report(methods: int, lams: int) -> tuple[str, ...]:
    """Write runs and return the command that reports them."""
    write_runs(methods, lams)
    return ("clbench.report", "runs", "--output", "out")


def train(*options: str) -> tuple[str, ...]:
    """Return the command of a run. The data of the run with 500 classes is in the folder ``conf``."""
    Path("conf/data").mkdir(parents=True)
    Path("conf/data/random.yaml").write_text(CLASSES, encoding="utf-8")
    return ("clbench.train", "--config-dir", "conf", *options)


MEASUREMENTS = {
    "report of 20,000 runs: 100 methods, 40 lams, 5 seeds": lambda: report(100, 40),
    "report of 20,000 runs: 4,000 methods, 5 seeds": lambda: report(4000, 1),
    "200 tasks, finetune": lambda: train("strategy=finetune", *TASKS),
    "200 tasks, ewc": lambda: train("strategy=ewc", *TASKS),
    "200 tasks, ewc, checkpoints=last": lambda: train("strategy=ewc", "checkpoints=last", *TASKS),
    "500 classes, ewc, scenario=class": lambda: train("strategy=ewc", "data=random", "scenario=class", *SMALL),
    "500 classes, ewc fisher=sample": lambda: train(
        "strategy=ewc", "fisher=sample", "data=random", "scenario=class", *SMALL
    ),
}


def measure(name: str) -> str:
    """Run a command in an empty folder and return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        command = [sys.executable, "-m", *MEASUREMENTS[name]()]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"{' '.join(command)} failed")
        size = sum(file.stat().st_size for file in Path("out").rglob("*") if file.is_file())
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000  # in kB on Linux
    return f"| {name} | {seconds:,.0f} s | {memory:,.0f} MB | {size / 1e6:,.1f} MB |"


def main(names: Sequence[str]) -> None:
    """Print the rows of the given names."""
    print("| command | CPU time | memory | disk |\n|---|---|---|---|")
    for name in names or list(MEASUREMENTS):
        print(measure(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
