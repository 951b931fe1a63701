"""Describe the code and the machine that trained a run."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clbench.config.options import conf_dir


def origin_of_run() -> dict[str, Any]:
    """Return the commit of clbench and a description of this machine."""
    return {"commit": commit(), "machine": machine()}


def checkout() -> Path | None:
    """Return the root of the checkout of clbench, None for an installed package."""
    root = conf_dir().parent
    return root if (root / "src/clbench").is_dir() else None


def results_folder() -> Path | None:
    """Return the folder of committed results: that of the checkout, or of the benchmarks in an installed package."""
    root = checkout()
    folder = Path(__file__).parent / "benchmark" if root is None else root / "results"
    return folder if folder.is_dir() else None


@cache
def commit() -> str:
    """Return the short hash of the checkout of clbench, with ``-dirty`` if it has changes, or the installed version."""
    root = checkout()
    if root is None:  # installed, perhaps in the environment of another repository
        return f"version {version('clbench')}"
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "--", ":/src", ":/conf"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
