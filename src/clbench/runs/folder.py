"""Read and write the files of a run. Each file is written under a temporary name and renamed, so none is half-written."""

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
from clbench.errors import ConfigError, OtherRun, expected

KEEP = ("all", "last", "none")
HOST = socket.gethostname().replace(".", "-")  # part of temporary names, because other machines may use the same folder
FAILED = "failed.txt"
"""File with the error message and the traceback of a failed run."""
FINISHED = "complete"
"""Status of a run that learned all its tasks."""


def learned(metrics: Mapping[str, Any]) -> int:
    """Return the number of learned tasks in the contents of metrics.json."""
    return sum(row[0] is not None for row in metrics["accuracy_matrix"])


@contextmanager
def lock_folder(folder: Path, name: str, remedy: str) -> Iterator[None]:
    """Lock ``folder`` for this process. The operating system releases the lock if the process is killed.

    Args:
        folder: The folder.
        name: Name of the folder in the error message.
        remedy: Remedy in the error message, after "or".

    Raises:
        ConfigError: Another process has locked the folder.
    """
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{name} is in use by another process. Wait until it has ended, or {remedy}.") from None
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """``metrics.json``, ``accuracy_matrix.csv`` and ``checkpoints/`` of one run.

    ``task_<t>.ckpt`` is the task checkpoint after task t, and ``mid_task_<t>.ckpt`` the newest checkpoint inside the current
    task t. Temporary files of killed processes are removed.

    Args:
        path: Path of the folder. It is created if it does not exist.
        config_hash: Hash of the configuration. All results in a folder belong to one configuration.
        checkpoints: Checkpoints that are kept: ``all``, the ``last``, or ``none`` (the run cannot be resumed).

    Raises:
        ConfigError: ``checkpoints`` is unknown.
        OtherRun: The folder contains results of another configuration.
    """

    def __init__(self, path: Path, config_hash: str, checkpoints: str = "all") -> None:
        if checkpoints not in KEEP:
            raise ConfigError(expected("checkpoints", checkpoints, f"one of {', '.join(KEEP)}"))
        self.path = path
        self.config_hash = config_hash
        self.checkpoints = checkpoints
        found = self.metrics()
        if found is not None and found["config_hash"] != config_hash:
            raise OtherRun(
                f"output_dir={path} contains the results of another run (strategy {found['strategy']['name']}, seed "
                f"{found['seed']}, config {found['config_hash']}, expected {config_hash}). Try another folder, or remove it."
            )
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / "checkpoints", path / ".hydra"):
            remove_parts(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder, so that no other process trains this run.

        Raises:
            ConfigError: Another process has locked the folder.
        """
        with lock_folder(self.path, f"output_dir={self.path}", "try another folder"):
            yield

    def metrics(self) -> dict[str, Any] | None:
        """Return the contents of metrics.json, None if it does not exist."""
        file = self.path / "metrics.json"
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found["config_hash"], found["strategy"]["name"], found["seed"], found["status"]
            schema = found.get("schema")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: expected a metrics.json of clbench. Try another output_dir, or remove the file."
            ) from error
        if schema != SCHEMA:
            got = "no schema" if schema is None else f"schema {schema}"
            raise ConfigError(
                f"output_dir={self.path}: expected results of schema {SCHEMA}, got {got} of another version of clbench, which "
                "cannot be resumed (clbench report can read them). Try another folder."
            )
        return found

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json and accuracy_matrix.csv. Task indices start at 0; nan and inf become null."""
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
    """Return the task checkpoints of a run by task index, in order."""
    files = (folder / "checkpoints").glob("task_*.ckpt")
    return dict(sorted((int(file.stem.removeprefix("task_")), file) for file in files))


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` on a temporary file in the same folder, flush the file to disk and rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.part")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove temporary files of ``atomically`` in ``folder`` whose process, on this machine, was killed."""
    for part in folder.glob(f".*.{HOST}.*.part"):
        if not _is_alive(int(part.suffixes[-2][1:])):
            part.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _plain(value: Any) -> Any:
    """Return ``value`` with nan and inf replaced by None, because JSON has no nan."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
