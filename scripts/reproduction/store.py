"""Store of the finished runs of a study, each in a folder named by its configuration hash."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clbench.runs.folder import atomically, lock_folder
from clbench.runs.json_files import COMPLETE
from reproduction.here import hash_of
from reproduction.plan import Cell


class Store:
    """Folder with ``<config hash>/`` for each run. A run with a changed configuration has another hash, so it runs again.

    Args:
        folder: Folder of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[Cell, str] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, because another process would treat a running run as an interrupted one.

        Raises:
            ConfigError: Another process uses the folder.
        """
        with lock_folder(self.folder, str(self.folder), "name another folder by --runs"):
            yield

    def hash(self, cell: Cell) -> str:
        """Return the configuration hash of a run."""
        if cell not in self._hashes:
            self._hashes[cell] = hash_of(cell.overrides, cell.seed)
        return self._hashes[cell]

    def path(self, cell: Cell) -> Path:
        """Return the folder of a run."""
        return self.folder / self.hash(cell)

    def metrics(self, cell: Cell) -> dict[str, Any] | None:
        """Return the metrics.json of a run with its origin, None if unfinished, or the reason under ``diverged``."""
        if (reason := self.path(cell) / "diverged.txt").exists():
            return {"diverged": reason.read_text(encoding="utf-8")}
        try:
            metrics: dict[str, Any] = json.loads((self.path(cell) / "metrics.json").read_text(encoding="utf-8"))
            origin = json.loads((self.path(cell) / "origin.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return {**metrics, "origin": origin} if metrics["status"] == COMPLETE else None

    def clear(self, cell: Cell) -> None:
        """Remove the files of an interrupted run without checkpoints, because it starts again."""
        path = self.path(cell)
        if path.exists() and not (path / "checkpoints").exists():
            shutil.rmtree(path)

    def clear_shared(self) -> None:
        """Remove the shared first tasks, which finished runs do not need."""
        shutil.rmtree(self.folder / "shared_first_tasks", ignore_errors=True)

    def finished(self, cell: Cell) -> None:
        """Write the origin of a run, which marks it as finished."""
        text = json.dumps({"commit": self.commit, "machine": machine()}, indent=2) + "\n"
        atomically(self.path(cell) / "origin.json", partial(Path.write_text, data=text, encoding="utf-8"))

    def diverged(self, cell: Cell, reason: str) -> None:
        """Write that a run cannot be finished, so that it is not tried again."""
        self.path(cell).mkdir(parents=True, exist_ok=True)
        atomically(self.path(cell) / "diverged.txt", partial(Path.write_text, data=reason + "\n", encoding="utf-8"))

    @cached_property
    def commit(self) -> str:
        """Commit of the code when this process started."""
        return commit()


def commit() -> str:
    """Return the short hash of the checkout, with ``-dirty`` if src, conf or scripts have changes, or ``unknown``."""
    decisive = (":/src", ":/conf", ":/scripts")
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", *decisive], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
