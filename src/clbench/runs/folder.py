"""Read and write the files of a run. Each file is written under a temporary name and renamed, so none is half-written."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clbench.config.hashing import SCHEMA
from clbench.config.os_errors import naming
from clbench.errors import ConfigError, OtherRun, expected
from clbench.metrics.quality import QUALITIES, Quality, quality_of
from clbench.runs.contradictions import contradictions
from clbench.runs.json_files import COMPLETE, COUNT, NUMBER, PARTIAL, QUALITY, TEXT, Shape, metrics_shape, mismatch

KEEP = ("all", "last", "none")
HOST = socket.gethostname().replace(".", "-")  # part of temporary names, because other machines may use the same folder
FAILED = "failed.txt"
"""File with the error message and the traceback of a failed run."""

REMOVE = (
    "Remove the file and rerun the same command, which writes it again from the checkpoints, or try another output_dir."
)
CSV_FILES = {quality.name: f"{quality.key('accuracy_matrix')}.csv" for quality in QUALITIES.values()}
"""Name of the file with R, by the name of its quality."""

FILES = (".lock", "config.json", "metrics.json", *sorted(set(CSV_FILES.values())), "train.log", FAILED)
FOLDERS = (".hydra", "checkpoints", "logs")
"""What a run writes in its folder."""

SECONDS = ("train", "importance", "evaluation", "shared", "total")


def resumable_shape(quality: Quality) -> Shape:
    """Return the shape of the metrics.json of a run of ``quality`` that can resume."""
    shape = metrics_shape(quality)
    return {
        **shape,
        **{"config_hash": TEXT, "seed": COUNT, "strategy": {"name": TEXT}, "data": {"scenario": TEXT}},
        **{key: shape[f"{key}?"] for key in (quality.key("initial_accuracy"), "within_tasks", "warnings")},
        **{"seconds": dict.fromkeys(SECONDS, NUMBER), "extra_metrics?": {"*": {}}},
    }


def is_finished(metrics: Mapping[str, Any]) -> bool:
    """Return whether the run with these contents of metrics.json has ended, with or without all batches and steps."""
    return metrics["status"] in (COMPLETE, PARTIAL)


def learned(metrics: Mapping[str, Any]) -> int:
    """Return the number of learned tasks in the contents of metrics.json."""
    return sum(row[0] is not None for row in metrics[quality_of(metrics).key("accuracy_matrix")])


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
    """``metrics.json``, ``accuracy_matrix.csv`` (or that of another quality) and ``checkpoints/`` of one run.

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
        check_places(path)
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
        """Return the contents of metrics.json, None if it does not exist.

        Raises:
            ConfigError: The file is damaged, or its numbers contradict each other.
        """
        found = read_metrics(self.path)
        if found is not None and (wrong := contradictions(found)):
            raise ConfigError(f"{self.path / 'metrics.json'}: {wrong[0]}. {REMOVE}")
        return found

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json and a CSV file with R. Task indices start at 0; nan and inf become null."""
        metrics = {"schema": SCHEMA, **metrics}
        quality = quality_of(metrics)
        matrix = metrics[quality.key("accuracy_matrix")]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["after_task_index", *(f"task_index_{j}" for j in range(len(matrix)))])
        writer.writerows([i, *row] for i, row in enumerate(_plain(matrix)) if row[i] is not None)
        file = self.path / CSV_FILES[quality.name]
        atomically(file, partial(Path.write_text, data=table.getvalue(), encoding="utf-8"))
        text = json.dumps(_plain(metrics), indent=2) + "\n"
        atomically(self.path / "metrics.json", partial(Path.write_text, data=text, encoding="utf-8"))


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the contents of metrics.json in a run folder, None if it does not exist.

    Raises:
        ConfigError: The file is damaged, or was written by another program or version.
    """
    file = folder / "metrics.json"
    if not file.exists():
        return None
    try:
        found: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: expected a metrics.json of clbench ({error}). {REMOVE}") from error
    if (
        isinstance(found, dict)
        and {"config_hash", "status"} <= found.keys()
        and (schema := found.get("schema")) != SCHEMA
    ):
        got = "no schema" if schema is None else f"schema {schema}"
        raise ConfigError(
            f"output_dir={folder}: expected results of schema {SCHEMA}, got {got} of another version of clbench, which "
            "cannot be resumed (clbench report can read them). Try another folder."
        )
    problem = mismatch(found, {"quality?": QUALITY})
    if problem is None:
        quality = quality_of(found)
        problem, key = mismatch(found, resumable_shape(quality)), quality.key("accuracy_matrix")
    if problem is None and not all(found[key]):
        problem = f"{key}: expected numbers in each row"
    if problem is not None:
        raise ConfigError(f"{file}: expected a metrics.json of clbench ({problem.removeprefix(': ')}). {REMOVE}")
    return {"validation": None, **found}


def check_places(path: Path) -> None:
    """Raise ConfigError if the files and folders of the run in ``path`` cannot be written, as far as they exist.

    It is called before training, so that no computed task is lost.
    """
    folders = [path, *(path / name for name in FOLDERS)]
    files = [*(path / name for name in FILES), *(path / "checkpoints").glob("*.ckpt")]
    for place in filter(os.path.lexists, [*folders, *files]):
        is_device = place.exists() and not place.is_dir() and not place.is_file()  # reading a pipe would block
        if place.is_dir() != (place in folders) or is_device:
            kind, other = ("folder", "a file or a broken link") if place in folders else ("file", "a folder")
            other = "a device" if is_device else other
            raise ConfigError(f"{place}: expected a {kind}, found {other}. Move it away, or try another output_dir.")
        if place in folders and not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(
                f"{place}: expected a folder that can be read and written. Change its permissions, or try another output_dir."
            )


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the task checkpoints of a run by task index, in order. Files with other names are ignored."""
    files = (folder / "checkpoints").glob("task_*.ckpt")
    named = {file: re.fullmatch(r"task_(0|[1-9][0-9]*)\.ckpt", file.name) for file in files}
    return dict(sorted((int(match[1]), file) for file, match in named.items() if match is not None))


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` on a temporary file in the same folder, flush the file to disk and rename it to ``path``.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.part")
    try:
        with naming(path):
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
