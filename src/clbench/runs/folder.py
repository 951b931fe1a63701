"""RunFolder: the files of a run. Each is written to a temporary name and renamed, so none is ever half-written."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clbench.config.hashing import SCHEMA
from clbench.errors import ConfigError, OtherRun

KEEP = ("all", "last", "none")
HOST = socket.gethostname().replace(".", "-")  # other machines may write into the same folders
FAILED = "failed.txt"
"""Why a run failed: a line, and where it happened."""
FINISHED = "complete"
"""The status of a run that learned all its tasks."""


def learned(metrics: Mapping[str, Any]) -> int:
    """How many tasks the run has learned whose metrics.json this is."""
    return sum(row[0] is not None for row in metrics["accuracy_matrix"])


@contextmanager
def alone(folder: Path, name: str, remedy: str) -> Iterator[None]:
    """Hold ``folder`` for this process; the system takes the hold from one that ends, however it ends.

    Raises:
        ConfigError: another process holds what a user knows as ``name``.
    """
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{name} is in use by another process: wait until it has ended, or {remedy}") from None
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """``metrics.json``, ``accuracy_matrix.csv`` and ``checkpoints/`` of one run.

    ``task_<t>.ckpt`` is the task checkpoint after task t, ``mid_task_<t>.ckpt`` the newest one inside task t while it is
    learned. What a process that was killed left half-written is removed.

    Args:
        path: made if it is not there.
        config_hash: of the configuration that decides the results; a folder belongs to one of them.
        checkpoints: ``all`` tasks, the ``last`` finished one, or ``none`` (the run cannot be resumed).

    Raises:
        ConfigError: unknown ``checkpoints``; as OtherRun, the folder holds results of another configuration.
    """

    def __init__(self, path: Path, config_hash: str, checkpoints: str = "all") -> None:
        if checkpoints not in KEEP:
            raise ConfigError(f"checkpoints={checkpoints!r} is not one of {', '.join(KEEP)}")
        self.path = path
        self.config_hash = config_hash
        self.checkpoints = checkpoints
        found = self.metrics()
        if found is not None and found["config_hash"] != config_hash:
            raise OtherRun(
                f"output_dir={path} holds the results of another run (strategy {found['strategy']['name']}, seed "
                f"{found['seed']}, config {found['config_hash']}, this is {config_hash}): choose another folder or remove it"
            )
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / "checkpoints", path / ".hydra"):
            remove_parts(folder)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains this run meanwhile.

        Raises:
            ConfigError: another process holds it.
        """
        with alone(self.path, f"output_dir={self.path}", "choose another folder"):
            yield

    def metrics(self) -> dict[str, Any] | None:
        """What metrics.json holds so far."""
        file = self.path / "metrics.json"
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found["config_hash"], found["strategy"]["name"], found["seed"], found["status"]
            schema = found.get("schema")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file} is not a metrics.json of clbench: choose another output_dir or remove it"
            ) from error
        if schema != SCHEMA:
            version = "without schema numbers" if schema is None else f"with schema {schema}"
            raise ConfigError(
                f"output_dir={self.path} was written by a version of clbench {version}, this one writes schema {SCHEMA}: "
                "clbench-report reads it, but no run can be resumed in it; choose another folder"
            )
        return found

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json and accuracy_matrix.csv, both with indices from 0; nan and inf become null."""
        metrics = {"schema": SCHEMA, **metrics}
        matrix = metrics["accuracy_matrix"]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["after_task_index", *(f"task_index_{j}" for j in range(len(matrix)))])
        writer.writerows([i, *row] for i, row in enumerate(matrix) if not any(math.isnan(a) for a in row))
        atomically(self.path / "accuracy_matrix.csv", partial(Path.write_text, data=table.getvalue(), encoding="utf-8"))
        text = json.dumps(_plain(metrics), indent=2) + "\n"
        atomically(self.path / "metrics.json", partial(Path.write_text, data=text, encoding="utf-8"))


def checkpoints(folder: Path) -> dict[int, Path]:
    """The task checkpoints of a run by task, in order."""
    files = (folder / "checkpoints").glob("task_*.ckpt")
    return dict(sorted((int(file.stem.removeprefix("task_")), file) for file in files))


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """``write`` to a temporary file beside ``path``, flush it to disk, rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.part")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what ``atomically`` had begun to write in ``folder`` when its process, on this machine, was killed."""
    for part in folder.glob(f".*.{HOST}.*.part"):
        if not _alive(int(part.suffixes[-2][1:])):
            part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _plain(value: Any) -> Any:
    """JSON has no nan: what is not defined is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
