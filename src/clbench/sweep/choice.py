"""lam chosen on the first tasks: what a learner may know before the rest of the sequence has come (Chaudhry et al. 2019)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import OmegaConf, open_dict
from rich.table import Table

from clbench.config import config_hash
from clbench.display import console
from clbench.errors import ConfigError
from clbench.sweep.cells import Cell


class Tried(NamedTuple):
    """Cells that differ in their seed only, their mean validation accuracy after the first tasks, and whether it is the best."""

    cells: list[Cell]
    accuracy: float
    chosen: bool


def contested(cells: Sequence[Cell]) -> list[list[list[Cell]]]:
    """Cells that differ in lam and seed only, by lam; of each such group one lam is to be chosen."""
    groups: dict[str, dict[Any, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        cfg = cell.cfg.copy()
        OmegaConf.set_readonly(cfg, False)
        with open_dict(cfg):
            cfg.seed, cfg.lam = 0, None
        groups[config_hash(cfg)][cell.cfg.lam].append(cell)
    return [list(by_lam.values()) for by_lam in groups.values()]


def accuracy(metrics: Mapping[str, Any], tasks: int) -> float:
    """Mean validation accuracy on the first ``tasks`` tasks, after the last of them.

    Raises:
        ConfigError: there are no validation data.
    """
    if metrics["validation"] is None:
        raise ConfigError("choose_lam_on needs validation data: data.validation is 0, set it above")
    row = metrics["validation"]["accuracy_matrix"][tasks - 1][:tasks]
    return sum(row) / tasks


def choose(
    groups: Sequence[Sequence[Sequence[Cell]]], found: Mapping[str, Mapping[str, Any]], tasks: int
) -> list[Tried]:
    """Each lam of each group with its mean over seeds; the best of a group is chosen, at a tie the smaller lam.

    Args:
        groups: of ``contested``.
        found: metrics.json of the cells by name; one that failed is not among them, and its lam is not chosen.
        tasks: how many first tasks count.
    """
    tried = []
    for by_lam in groups:
        means = [
            sum(accuracy(found[cell.name], tasks) for cell in cells) / len(cells)
            if all(cell.name in found for cell in cells)
            else -1.0
            for cells in by_lam
        ]
        best = max(range(len(means)), key=lambda k: (means[k], -(by_lam[k][0].cfg.lam or 0)))
        tried += [Tried(list(cells), means[k], k == best) for k, cells in enumerate(by_lam)]
    return tried


def show_choice(tried: Sequence[Tried], tasks: int) -> None:
    """A row per lam."""
    table = Table("strategy", "lam", "seeds", f"validation accuracy on the first {tasks} tasks", "")
    for row in tried:
        cell = row.cells[0]
        said = "failed" if row.accuracy < 0 else f"{row.accuracy:.4f}"
        table.add_row(cell.strategy, f"{cell.cfg.lam}", str(len(row.cells)), said, "chosen" if row.chosen else "")
    console().print(table)
