"""lam chosen on the first tasks: what a learner may know before the rest of the sequence has come (Chaudhry et al. 2019)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from clbench.config.display import console
from clbench.config.messages import cause_of
from clbench.errors import ConfigError, SweepFailed, Unstable
from clbench.sweep.grid import Cell


class Tried(NamedTuple):
    """Cells that differ in their seed only, and what became of them on the first tasks.

    Attributes:
        cells: the cells.
        accuracy: mean validation accuracy after the first tasks; None if weights of one became non-finite.
        problem: what is said then.
        chosen: whether their lam is.
    """

    cells: list[Cell]
    accuracy: float | None
    problem: str
    chosen: bool


def check_choice(cells: Sequence[Cell], tasks: int) -> None:
    """Raise ConfigError if there is nothing to choose by."""
    if not isinstance(tasks, int) or tasks < 1:
        raise ConfigError(f"choose_lam_on={tasks}: it is a whole number of tasks, at least 1")
    if any(cell.cfg.data.get("validation") == 0 for cell in cells):
        raise ConfigError(f"choose_lam_on={tasks} needs validation data: data.validation is 0, set it above")


def contested(cells: Sequence[Cell]) -> list[list[list[Cell]]]:
    """Cells that differ in lam and seed only, by lam; of each such group one lam is to be chosen."""
    groups: dict[str, dict[Any, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        groups[cell.kind][cell.cfg.lam].append(cell)
    return [list(by_lam.values()) for by_lam in groups.values()]


def accuracy(metrics: Mapping[str, Any], tasks: int) -> float:
    """Mean validation accuracy on the first ``tasks`` tasks, after the last of them."""
    row: list[float] = metrics["validation"]["accuracy_matrix"][tasks - 1][:tasks]
    return sum(row) / tasks


def choose(
    groups: Sequence[Sequence[Sequence[Cell]]],
    found: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, BaseException],
    tasks: int,
) -> list[Tried]:
    """Each lam of each group with its mean over seeds; the best of a group is chosen, at a tie the smaller lam.

    Args:
        groups: of ``contested``.
        found: metrics.json by name of the cells that have learned the first tasks.
        errors: by name, why others have not.
        tasks: how many first tasks count.

    Raises:
        SweepFailed: a cell has not learned them, for another reason than that its weights became non-finite, or all of a
            group became so: then there is nothing to choose by.
    """
    tried = []
    for by_lam in groups:
        rows = [_tried(cells, found, errors, tasks) for cells in by_lam]
        means = [(row.accuracy, -(row.cells[0].cfg.lam or 0)) for row in rows if row.accuracy is not None]
        if not means:
            raise SweepFailed(f"no lam can be chosen for {rows[0].cells[0].strategy}: {rows[0].problem}")
        best = max(means)
        tried += [row._replace(chosen=(row.accuracy, -(row.cells[0].cfg.lam or 0)) == best) for row in rows]
    return tried


def _tried(
    cells: Sequence[Cell], found: Mapping[str, Mapping[str, Any]], errors: Mapping[str, BaseException], tasks: int
) -> Tried:
    for cell in cells:
        if cell.name not in found:
            error = errors.get(cell.name)
            why = "it was not done" if error is None else cause_of(error) or repr(error)
            if not isinstance(error, Unstable):
                raise SweepFailed(
                    f"lam cannot be chosen on the first {tasks} tasks: {cell.name} has not learned them ({why}); the same "
                    "command goes on"
                )
            return Tried(list(cells), None, why, False)
    return Tried(list(cells), sum(accuracy(found[cell.name], tasks) for cell in cells) / len(cells), "", False)


def show_choice(tried: Sequence[Tried], tasks: int) -> None:
    """A row per lam."""
    table = Table("strategy", "lam", "seeds", f"validation accuracy on the first {tasks} tasks", "")
    for row in tried:
        cell = row.cells[0]
        said = f"failed: {row.problem}" if row.accuracy is None else f"{row.accuracy:.4f}"
        texts = (cell.strategy, f"{cell.cfg.lam}", str(len(row.cells)), said, "chosen" if row.chosen else "")
        table.add_row(*map(Text, texts))
    console().print(table)
