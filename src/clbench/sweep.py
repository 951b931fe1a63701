"""What a sweep says: how many runs, and at the end a line for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clbench.config import OPTIONS, config_hash
from clbench.errors import ConfigError
from clbench.metrics import intransigence

REFERENCES = ("joint_scratch", "joint", "independent")
"""Strategies whose accuracy on a task just learned intransigence is measured against; the first that a sweep has is taken.

Chaudhry et al. 2018 have the net that learned all tasks so far together.
"""


class SweepFailed(ConfigError):
    """Some runs of a sweep failed; the others are done."""


def report_line(runs: int, cells: int, folder: Path) -> str:
    """How many runs a sweep has."""
    same = cells - runs
    merged = (
        f" ({same} of {cells} cells differ only in options their strategy does not have, and run once)" if same else ""
    )
    return f"{runs} runs in {folder}{merged}"


def show_results(runs: Sequence[Sequence[str]], returns: Sequence[Any], folder: Path) -> None:
    """A row per run: its overrides and its objective, or why it failed; "-" is an option that its strategy does not have.

    Where a reference run of the same configuration is there, the intransigence beside it is shown too.
    """
    from clbench.cli import cause_of

    varied = _varied(runs)
    reference, lost = intransigences(returns)
    table = Table("run", *varied, "objective", *([f"intransigence ({reference})"] if any(lost) else []))
    for number, (run, result) in enumerate(zip(runs, returns, strict=True)):
        value = result._return_value
        failed = isinstance(value, BaseException)
        said = f"failed: {cause_of(value) or repr(value)}" if failed else "-" if value is None else f"{value:.4f}"
        chosen = dict(override.split("=", 1) for override in run)
        dropped = [key for key in varied if chosen[key] != "null" and result.cfg.get(key, "") is None]
        cells = ["-" if key in dropped else chosen[key] for key in varied]
        table.add_row(str(number), *cells, said, *([lost[number]] if any(lost) else []))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"results in {folder}", soft_wrap=True)


def intransigences(returns: Sequence[Any]) -> tuple[str | None, list[str]]:
    """The reference strategy, and the intransigence of each run beside its run that differs in the strategy only, else ""."""
    matrices = [None if isinstance(r._return_value, BaseException) else _matrix(r) for r in returns]
    alike = [_without_strategy(r.cfg) for r in returns]
    found: dict[tuple[str, str], Tensor] = {}
    for result, matrix, rest in zip(returns, matrices, alike, strict=True):
        name = OmegaConf.select(result.hydra_cfg, "hydra.runtime.choices.strategy")
        if matrix is not None and name in REFERENCES:
            found[name, rest] = matrix
    reference = next((name for name in REFERENCES if any(name == there for there, _ in found)), None)
    said = []
    for matrix, rest in zip(matrices, alike, strict=True):
        best = found.get((reference or "", rest))
        said.append("" if matrix is None or best is None else f"{intransigence(matrix, best):.4f}")
    return reference, said


def _matrix(result: Any) -> Tensor | None:
    file = Path(result.hydra_cfg.hydra.runtime.output_dir) / "metrics.json"
    return torch.tensor(json.loads(file.read_text())["accuracy_matrix"]) if file.exists() else None


def _without_strategy(cfg: DictConfig) -> str:
    """A hash of all that a strategy does not decide."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        cfg.strategy = {}
        for name in OPTIONS:
            cfg[name] = None
    return config_hash(cfg)


def _varied(runs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between runs, in the order given."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for override in run:
            key, value = override.split("=", 1)
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]
