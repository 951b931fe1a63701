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
    return run_in_fork(("clbench.train", *arguments), folder, environment)


def run_in_fork(arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run ``python SCRIPT.py ARGUMENTS`` or ``python -m MODULE ARGUMENTS`` in ``folder``."""
    with TemporaryDirectory() as output:
        out, err = Path(output) / "out", Path(output) / "err"
        process = FORK.Process(target=_run, args=(arguments, folder, dict(environment), out, err))
        process.start()
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments}: {err.read_text(encoding='utf-8')}")
        return CompletedProcess(
            arguments, process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
        )


def _run(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [
        str(folder),
        *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)),
    ]  # as python -m does
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = list(arguments)
    if arguments[0].endswith(".py"):
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        sys.modules.pop(arguments[0], None)  # runpy executes it again
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
