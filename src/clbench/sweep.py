"""What a sweep says: how many runs, and at the end a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clbench.errors import ConfigError


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
    """A row per run: its overrides and its objective, or why it failed; "-" is an option that its strategy does not have."""
    from clbench.cli import cause_of

    varied = _varied(runs)
    table = Table("run", *varied, "objective")
    for number, (run, result) in enumerate(zip(runs, returns, strict=True)):
        value = result._return_value
        failed = isinstance(value, BaseException)
        said = f"failed: {cause_of(value) or repr(value)}" if failed else "-" if value is None else f"{value:.4f}"
        chosen = dict(override.split("=", 1) for override in run)
        dropped = [key for key in varied if chosen[key] != "null" and result.cfg.get(key, "") is None]
        table.add_row(str(number), *("-" if key in dropped else chosen[key] for key in varied), said)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"results in {folder}", soft_wrap=True)


def _varied(runs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between runs, in the order given."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for override in run:
            key, value = override.split("=", 1)
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]
