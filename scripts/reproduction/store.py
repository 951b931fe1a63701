"""store: the finished runs of a reproduction, each in a folder named by its config hash."""

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

from clbench.runs.folder import FINISHED, atomically, lock_folder
from reproduction.here import hash_of
from reproduction.plan import Cell


class Store:
    """``FOLDER/<config hash>/`` for each run. A run whose configuration has changed has another hash, so it runs again.

    Args:
        folder: of one reproduction.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[Cell, str] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process runs this reproduction here meanwhile: it would take a running run for a stopped one.

        Raises:
            ConfigError: another one does.
        """
        with lock_folder(self.folder, str(self.folder), "name another folder by --runs"):
            yield

    def hash(self, cell: Cell) -> str:
        """Config hash of a run."""
        if cell not in self._hashes:
            self._hashes[cell] = hash_of(cell.overrides, cell.seed)
        return self._hashes[cell]

    def path(self, cell: Cell) -> Path:
        """Where its files lie."""
        return self.folder / self.hash(cell)

    def metrics(self, cell: Cell) -> dict[str, Any] | None:
        """Its metrics.json with its origin, None if it is not finished; only why, under ``diverged``, if it diverged."""
        if (told := self.path(cell) / "diverged.txt").exists():
            return {"diverged": told.read_text(encoding="utf-8")}
        try:
            metrics: dict[str, Any] = json.loads((self.path(cell) / "metrics.json").read_text(encoding="utf-8"))
            origin = json.loads((self.path(cell) / "origin.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return {**metrics, "origin": origin} if metrics["status"] == FINISHED else None

    def clear(self, cell: Cell) -> None:
        """Remove what a run without checkpoints left when it was stopped: it starts again, its seconds too."""
        path = self.path(cell)
        if path.exists() and not (path / "checkpoints").exists():
            shutil.rmtree(path)

    def clear_shared(self) -> None:
        """Remove what runs had in common: it is needed no more."""
        shutil.rmtree(self.folder / "shared_first_tasks", ignore_errors=True)

    def finished(self, cell: Cell) -> None:
        """Write where a run comes from; with this file it counts as finished."""
        text = json.dumps({"commit": self.commit, "machine": machine()}, indent=2) + "\n"
        atomically(self.path(cell) / "origin.json", partial(Path.write_text, data=text, encoding="utf-8"))

    def diverged(self, cell: Cell, reason: str) -> None:
        """Write that a run cannot be finished, so that it is not tried again."""
        self.path(cell).mkdir(parents=True, exist_ok=True)
        atomically(self.path(cell) / "diverged.txt", partial(Path.write_text, data=reason + "\n", encoding="utf-8"))

    @cached_property
    def commit(self) -> str:
        """Of the code, when this process began."""
        return commit()


def commit() -> str:
    """Short hash of the checkout, ``-dirty`` if what decides a number has changes; ``unknown`` outside of one."""
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
    """What the runs ran on."""
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
