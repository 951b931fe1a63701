"""Print the results of a sweep: a table with a row per run, and a table of means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.table import Table
from rich.text import Text

from clbench.config.display import console, print_named_rows, text_table
from clbench.config.hashing import content_hash
from clbench.config.messages import user_message
from clbench.config.options import OPTIONS
from clbench.metrics.formulas import intransigence
from clbench.metrics.quality import quality_of
from clbench.metrics.registry import BUILT_IN
from clbench.metrics.results import read_matrix
from clbench.runs.json_files import PARTIAL
from clbench.runs.names import REFERENCES, format_value
from clbench.runs.objective import better_direction, objective
from clbench.runs.sweep_log import duration
from clbench.sweep.grid import PlannedRun, run_labels, varied_keys

INTRANSIGENCE = BUILT_IN["intransigence"]


def show_results(
    runs: Sequence[PlannedRun],
    metrics: Sequence[Mapping[str, Any] | None],
    errors: Mapping[str, BaseException],
    folder: Path,
) -> None:
    """Print a row per run with its overrides and its objective or its error; "-" is an option that its strategy does not have.

    With several seeds, a second table has a row per setup with the mean over the complete runs. If a reference run with the
    same configuration exists, the first table also contains the intransigence.

    Args:
        runs: The runs.
        metrics: Contents of metrics.json of each complete run, else None.
        errors: Errors of failed runs, by the names of the runs.
        folder: The sweep's folder.
    """
    keys = varied_keys(runs)
    references, losses = intransigences(runs, metrics)
    heading = [f"{INTRANSIGENCE.heading} ({', '.join(references)})"] if references else []
    rows = []
    for run, found, loss in zip(runs, metrics, losses, strict=True):
        result = _format_result(run, found, errors.get(run.name), folder)
        rows.append([*run.settings(keys), result, *([loss] if heading else [])])
    print_named_rows([run.name for run in runs], ["run", *keys, "objective", *heading], rows)
    terminal = console()
    if "seed" in keys:
        terminal.print(_means(runs, metrics, [key for key in keys if key != "seed"]))
    for line in (*best_at_an_edge(runs, metrics, keys), *_warnings(runs, metrics)):
        terminal.print(line, soft_wrap=True, markup=False)
    shared = [found["seconds"]["shared"] for found in metrics if found is not None and found["seconds"]["shared"] > 0]
    if shared:
        number = "1 run" if len(shared) == 1 else f"{len(shared)} runs"
        terminal.print(f"{number} reused a shared first task ({duration(sum(shared))} saved)")
    terminal.print(f"results in {folder}", soft_wrap=True)
    terminal.print(f"report on all runs: clbench report {folder}", soft_wrap=True)


def _means(runs: Sequence[PlannedRun], metrics: Sequence[Mapping[str, Any] | None], keys: Sequence[str]) -> Table:
    from clbench.metrics.interval import half_width

    groups: dict[tuple[str, ...], list[float]] = {}
    for run, found in zip(runs, metrics, strict=True):
        found_values = groups.setdefault(tuple(run.settings(keys)), [])
        if found is not None and (value := _objective(run, found)) is not None:
            found_values.append(value)
    table = text_table(*keys, "seeds", "objective, mean", "95 % interval")
    for setting, values in groups.items():
        mean = f"{statistics.fmean(values):.4f}" if values else "-"
        half = f"± {float(half_width(statistics.stdev(values), len(values))):.4f}" if len(values) > 1 else "-"
        table.add_row(*map(Text, (*setting, str(len(values)), mean, half)))
    return table


def best_at_an_edge(
    runs: Sequence[PlannedRun], metrics: Sequence[Mapping[str, Any] | None], keys: Sequence[str]
) -> list[str]:
    """Return a line for each setup whose best lam is the smallest or largest one of several, all else being equal.

    Args:
        runs: The runs.
        metrics: Contents of metrics.json of each complete run, else None.
        keys: Keys whose values differ between the runs.
    """
    others = [key for key in keys if key not in ("lam", "seed")]
    groups: dict[tuple[str, ...], dict[float, list[float]]] = {}
    for run, found in zip(runs, metrics, strict=True):
        if found is not None and isinstance(lam := run.cfg.lam, int | float):
            value = _objective(run, found)
            if value is not None and (direction := better_direction(quality_of(found), run.cfg.objective)):
                sign = 1 if direction == "maximize" else -1
                group = groups.setdefault((run.strategy, *run.settings(others)), {})
                group.setdefault(float(lam), []).append(sign * value)
    lines = []
    for (strategy, *settings), by_lam in groups.items():
        best = max(by_lam, key=lambda lam: statistics.fmean(by_lam[lam]))
        name = " ".join([strategy, *(f"{k}={v}" for k, v in zip(others, settings, strict=True) if k != "strategy")])
        if len(by_lam) > 1 and best in (min(by_lam), max(by_lam)):
            end, more = ("smallest", "smaller") if best == min(by_lam) else ("largest", "larger")
            lines.append(
                f"{name}: the best lam, {format_value(best)}, is the {end} that was tried. A {more} one may be better."
            )
    return lines


def _warnings(runs: Sequence[PlannedRun], metrics: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Return a line for each kind of warning of the penalty monitor."""
    names = run_labels(runs)
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for run, found in zip(runs, metrics, strict=True):
        for warning in [] if found is None else found["warnings"]:
            by_kind.setdefault(warning["kind"], []).append((names[run.name], warning["text"]))
    return [
        f"warning in {len(warned)} of {len(runs)} runs, such as {warned[0][0]}: {warned[0][1]}"
        for warned in by_kind.values()
    ]


def _format_result(
    run: PlannedRun, metrics: Mapping[str, Any] | None, error: BaseException | None, folder: Path
) -> str:
    if error is not None:
        return f"failed: {user_message(error) or repr(error)}"
    if metrics is None:
        found = run.metrics(folder)
        if found is not None and found["status"] == PARTIAL:
            return f"partial: {found['partial'][0]}"
        learned = run.learned(folder)
        return f"{learned} tasks learned" if learned else "not done"
    value = _objective(run, metrics)
    return "-" if value is None else f"{value:.4f}"


def _objective(run: PlannedRun, metrics: Mapping[str, Any]) -> float | None:
    return objective(metrics, run.cfg.objective, run.cfg.metrics.extra)


def intransigences(
    runs: Sequence[PlannedRun], metrics: Sequence[Mapping[str, Any] | None]
) -> tuple[list[str], list[str]]:
    """Return the reference strategies, and the intransigence of each run relative to the best reference with equal options."""
    qualities = [None if found is None else quality_of(found) for found in metrics]
    matrices = [
        None if found is None or quality is None else quality.sign * read_matrix(found, quality)
        for found, quality in zip(metrics, qualities, strict=True)
    ]
    # data of other contents may have another number of tasks
    kinds = [
        None if matrix is None else (len(matrix), quality) for matrix, quality in zip(matrices, qualities, strict=True)
    ]
    alike = [(_without_strategy(run.cfg), kind) for run, kind in zip(runs, kinds, strict=True)]
    best: dict[tuple[str, tuple[str, Any]], NDArray[np.float64]] = {}
    for run, matrix, rest in zip(runs, matrices, alike, strict=True):
        if matrix is not None and run.strategy in REFERENCES:
            best[run.strategy, rest] = matrix
    used, texts = set(), []
    for matrix, rest in zip(matrices, alike, strict=True):
        name = next((name for name in REFERENCES if (name, rest) in best), None)
        if matrix is None or name is None:
            texts.append("")
        else:
            used.add(name)
            texts.append(INTRANSIGENCE.text(intransigence(matrix, best[name, rest])))
    return [name for name in REFERENCES if name in used], texts


def _without_strategy(cfg: DictConfig) -> str:
    """Return a hash of all options that do not belong to the strategy."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        cfg.strategy = {}
        for name in OPTIONS:
            cfg[name] = None
    return content_hash(cfg)
