"""Plan the runs that a row needs, as a pure function of the finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

from clbench.errors import ConfigError
from clbench.metrics.quality import quality_of
from clbench.runs.objective import better_direction
from clbench.study.definition import Row, Selection, Study

Point = Mapping[str, Any]
Results = Mapping["Cell", Mapping[str, Any]]

LONGEST = 8
"""Largest number of values by which a grid is extended, for metrics that never stop rising."""


class Cell(NamedTuple):
    """One run: ``python -m clbench.train OVERRIDES seed=SEED``."""

    overrides: tuple[str, ...]
    seed: int

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of the command."""
        return (*self.overrides, f"seed={self.seed}")


def needed_runs(row: Row, results: Results) -> list[Cell]:
    """Return the runs that a row is known to need, including finished ones. More may follow when these are finished."""
    if not row.select:
        return final_runs(row, {})
    cells: dict[Cell, None] = {}
    for selection in row.select:
        trials, best = search(row, selection, results)
        cells |= dict.fromkeys(cell for _, mine in trials for cell in mine)
        if best is not None:
            cells |= dict.fromkeys(final_runs(row, best, selection))
    return list(cells)


def decisive_runs(row: Row, results: Results) -> list[Cell]:
    """Return the final runs of a row that no other point of the grid can replace. None of them may diverge."""
    if not row.select:
        return final_runs(row, {})
    chosen = [search(row, selection, results)[1] for selection in row.select if row.like]
    return [cell for best in chosen if best is not None for cell in final_runs(row, best)]


def search(row: Row, selection: Selection, results: Results) -> tuple[list[tuple[Point, list[Cell]]], Point | None]:
    """Return the points of the grid with their trial runs, and the best point once all of these are finished.

    If the best value of a key in ``selection.extend`` is the smallest or largest, and no other value is as good, the grid is
    extended by that factor. A point is not chosen if one of its runs diverged, final runs included. If no point is left, the
    grid is extended below its smallest learning rates and strengths.

    Raises:
        ConfigError: Runs diverged at all points, and the grid is not extended any further.
    """

    def score(trial: tuple[Point, list[Cell]]) -> float:
        point, cells = trial
        return fmean(read_score(results[cell], selection.key) for cell in [*cells, *diverged_runs(row, point, results)])

    grid = {key: list(values) for key, values in row.grid.items()}
    while True:
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        trials: list[tuple[Point, list[Cell]]] = [(point, _cells(row, point, selection)) for point in points]
        if any(cell not in results for _, cells in trials for cell in cells):
            return trials, None
        scores = [score(trial) for trial in trials]
        all_diverged = max(scores) == -math.inf
        best, *ties = (point for point, each in zip(points, scores, strict=True) if each == max(scores))
        extend = {
            key: factor
            for key, factor in (selection.extend or {}).items()
            if all_diverged or all(tie[key] == best[key] for tie in ties)
        }
        wider = _widened(grid, row, {key: min(grid[key]) for key in extend} if all_diverged else best, extend)
        if wider == grid and all_diverged:
            raise ConfigError(f"{row.name}: runs diverged at all {len(points)} points of the grid.")
        if wider == grid:
            return trials, best
        grid = wider


def final_runs(row: Row, point: Point, selection: Selection | None = None) -> list[Cell]:
    """Return the final runs at a point that a rule chose, by default the first rule."""
    seeds = (selection.final if selection else ()) or row.seeds
    return [Cell((*row.overrides, *overrides_of(used_part(row, point))), seed) for seed in seeds]


def used_part(row: Row, point: Point) -> Point:
    """Return the values of a point that the final runs use: a row like another keeps those that it sets itself."""
    own = {text.lstrip("+").partition("=")[0] for text in row.overrides} if row.like else set()
    return {key: value for key, value in point.items() if key not in own}


def diverged_runs(row: Row, point: Point, results: Results) -> list[Cell]:
    """Return the diverged final runs at a point, or none for a row like another."""
    return [] if row.like else [cell for cell in final_runs(row, point) if "diverged" in results.get(cell, {})]


def at_an_edge(row: Row, trials: Sequence[tuple[Point, Any]], best: Point) -> list[str]:
    """Return the keys with several numbers whose best value is the smallest or largest one."""
    edges = []
    for key in row.grid:
        values = sorted({point[key] for point, _ in trials if isinstance(point[key], int | float)})
        if len(values) > 1 and best[key] in (values[0], values[-1]):
            edges.append(key)
    return edges


def number_of_cells(study: Study) -> int:
    """Return the number of different runs of a study, without extensions of grids."""
    cells: set[Cell] = set()
    for row in study.rows:
        cells.update(needed_runs(row, {}))
        for rule in row.select:
            again = set(rule.final or row.seeds) - (set() if rule.overrides else set(rule.seeds))
            cells.update(Cell((row.name, f"best by {rule.key}"), seed) for seed in again)
    return len(cells)


def overrides_of(point: Point) -> tuple[str, ...]:
    """Return the overrides of a point: ``{"lam": 1e3}`` -> ``("lam=1000",)``."""
    return tuple(f"{key}={text_of(value)}" for key, value in point.items())


def text_of(value: Any) -> str:
    """Return the shortest exact text of a value, as in an override."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def read_number(metrics: Mapping[str, Any], key: str) -> float:
    """Return the number under a dotted key of metrics.json. ``accuracy_matrix.1.0`` is R[1][0], and ``-1`` is the last index.

    In runs of another quality, ``average_accuracy`` is read from ``average_quality``, and so are all such names. The value of a
    diverged run is -inf, so it is worse than every number.

    Raises:
        ConfigError: There is no such number.
    """
    value: Any = metrics
    if "diverged" in metrics:
        return -math.inf
    quality = quality_of(metrics)
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part if part in value else quality.key(part)]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConfigError(f"{key} is not in metrics.json, which has no {part}.") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"{key}: expected a number in metrics.json, got {'null' if value is None else value}. Choose a metric that is "
            "defined for these runs under metrics; finished runs are kept."
        )
    return float(value)


def read_score(metrics: Mapping[str, Any], key: str) -> float:
    """Return ``read_number``, with the opposite sign if lower values are better in the quality of the run."""
    return sign_of(metrics, key) * read_number(metrics, key) if "diverged" not in metrics else -math.inf


def sign_of(metrics: Mapping[str, Any], key: str) -> int:
    """Return -1 if lower values of the number under ``key`` are better in the quality of the run, 1 otherwise."""
    return -1 if better_direction(quality_of(metrics), key) == "minimize" else 1


def _cells(row: Row, point: Point, selection: Selection) -> list[Cell]:
    overrides = (*(row.tuned or row.overrides), *overrides_of(point), *selection.overrides)
    return [Cell(overrides, seed) for seed in selection.seeds]


def _widened(grid: dict[str, list[Any]], row: Row, best: Point, extend: Mapping[str, float]) -> dict[str, list[Any]]:
    wider = {key: list(values) for key, values in grid.items()}
    for key, factor in extend.items():
        if len(grid[key]) - len(row.grid[key]) >= LONGEST or best[key] <= 0:  # a factor does not move 0
            continue
        if best[key] == min(grid[key]):
            wider[key].insert(0, _plain(best[key] / factor))
        elif best[key] == max(grid[key]):
            wider[key].append(_plain(best[key] * factor))
    return wider


def _plain(value: float) -> float:
    """Return .3 for .1 * 3, where floating point adds a 4 in the 17th digit. A periodic value such as .01 / 3 is unchanged."""
    round_number = float(f"{value:.9g}")
    return round_number if math.isclose(round_number, value, rel_tol=1e-15) else value
