"""Fixtures: composed configurations, runs in this process, the command, and real data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import settings
from omegaconf import DictConfig

import clbench
from clbench.config.compose import compose
from clbench.config.messages import silence_lightning
from tests.forked import type_command

Run = Callable[..., dict[str, Any]]

settings.register_profile("development", max_examples=10, deadline=None)
settings.register_profile("ci", max_examples=60, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "development"))


def others_slow(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return ``values`` as parameters of a test, of which all but ``fast`` run in the slow tier."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(autouse=True, scope="session")
def _one_thread_and_quiet():
    """Use one thread, as in a sweep, and silence Lightning."""
    torch.set_num_threads(1)
    silence_lightning()


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """``composed("strategy=mas", ...)`` returns the configuration of the command, including the key ``hydra``."""

    return lambda *overrides: compose(overrides)


@pytest.fixture
def run(tmp_path) -> Run:
    """``run("strategy=mas", folder="a")`` runs the command in this process and returns metrics.json."""
    return lambda *overrides, folder="run": clbench.run([*overrides, "trainer=cpu"], tmp_path / folder)


def stopped_after(task: int, whole: Path, again: Path) -> Path:
    """Return a copy of a complete run that looks as if its process was stopped after ``task``."""
    shutil.copytree(whole, again)
    for file in again.glob("checkpoints/task_*.ckpt"):
        if int(file.stem.removeprefix("task_")) > task:
            file.unlink()
    metrics = json.loads((again / "metrics.json").read_text(encoding="utf-8"))
    (again / "metrics.json").write_text(json.dumps({**metrics, "status": "running"}), encoding="utf-8")
    return again


@pytest.fixture
def command(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``command("strategy=ewc", ...)`` runs ``python -m clbench.train strategy=ewc ...`` in a new folder.

    ``imported=False`` starts a new Python, which is necessary for commands that start further processes.
    """

    def go(*arguments: str, environment: dict[str, str] | None = None, imported: bool = True):
        whole = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        if imported:
            return type_command(arguments, tmp_path, whole)
        line = [sys.executable, "-m", "clbench.train", *arguments]
        return subprocess.run(line, cwd=tmp_path, env=whole, capture_output=True, text=True, timeout=300)

    return go


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with MNIST and other data sets; skip the test if they are not available."""
    folder = os.environ.get("CLBENCH_DATA_DIR", "")
    if not folder or not (Path(folder) / "MNIST").is_dir():
        pytest.skip("real data: set CLBENCH_DATA_DIR to a folder with MNIST and FashionMNIST")
    return Path(folder)


def replace_in(file: Path, old: str, new: str) -> None:
    """Replace ``old`` with ``new`` in a text file; fail if the file does not contain ``old``."""
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file} has no {old!r}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """Return a Trainer that writes no files."""
    return L.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        **{"max_epochs": 1, "devices": 1, **options},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
