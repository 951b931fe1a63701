"""Run commands in forks of a process that has imported torch, which saves the time of the import."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "tests.conftest",
        "clbench.runs.plots",
        "clbench.sweep.plan",
        "matplotlib.backends.backend_agg",
        "sklearn.datasets",
    ]
)


def type_command(arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run ``python -m clbench.train ARGUMENTS`` in ``folder``."""
    with TemporaryDirectory() as output:
        out, err = Path(output) / "out", Path(output) / "err"
        process = FORK.Process(target=_command, args=(arguments, folder, dict(environment), out, err))
        process.start()
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments}: {err.read_text(encoding='utf-8')}")
        return CompletedProcess(
            arguments, process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
        )


def _command(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [
        str(folder),
        *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)),
    ]  # as python -m does
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["clbench.train", *arguments]
    sys.modules.pop("clbench.train", None)  # runpy executes it again
    runpy.run_module("clbench.train", run_name="__main__", alter_sys=True)
