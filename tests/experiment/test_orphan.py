"""Worker processes end when the process that started them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

ENDLESS = ("data.tasks=2", "net.hidden=[4]", "steps=100000000", "logger=none", "trainer.accelerator=cpu")


def children(parent: int) -> set[int]:
    """Return the processes that ``parent`` has started and that have not ended."""
    return {pid for pid, (ppid, _) in processes().items() if ppid == parent}


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of each process that has not ended."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=3) for line in lines.stdout.splitlines()]
    return {int(row[0]): (int(row[1]), row[-1]) for row in rows if not row[2].startswith("Z")}


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.2)
    return condition()


@pytest.mark.parametrize(
    ("options", "workers"),
    [(("-m", "seed=0,1", "launch=joblib", "hydra.launcher.n_jobs=2"), 2), (("trainer=ddp",), 1)],
    ids=["joblib", "ddp"],
)
def test_no_worker_survives_its_killed_parent(tmp_path, options, workers):
    line = [sys.executable, "-m", "clbench.train", *options, *ENDLESS, "output_dir=out"]
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(line, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    started: set[int] = set()
    try:
        # config.json exists when a worker trains; the process of rank 1 of a run writes no file
        assert wait_until(lambda: len(list(tmp_path.glob("out/**/config.json"))) >= workers, 240), (
            tmp_path / "log"
        ).read_text(encoding="utf-8")
        assert wait_until(lambda: len(children(parent.pid)) >= workers, 120)
        time.sleep(3)
        started = children(parent.pid)
        parent.kill()
        parent.wait()
        # 5 s on an idle machine; idle workers of joblib would wait for 300 s
        assert wait_until(lambda: not started & processes().keys(), 60), [processes().get(pid) for pid in started]
    finally:
        for pid in {parent.pid, *started} & processes().keys():
            os.kill(pid, signal.SIGKILL)
