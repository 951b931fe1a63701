"""Collect the finished runs of a study as the content of study.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import fmean, median
from typing import Any

from clbench.errors import ConfigError
from clbench.metrics.registry import BUILT_IN
from clbench.study import verdict
from clbench.study.definition import Claim, Row, Selection, Study
from clbench.study.plan import (
    Cell,
    Results,
    at_an_edge,
    diverged_runs,
    final_runs,
    needed_runs,
    read_number,
    read_score,
    search,
    sign_of,
    used_part,
)
from clbench.study.verdict import summary

SCHEMA = 1
"""Version of the format of study.json."""


def collect(study: Study, results: Results, hash_of: Callable[[Cell], str], command: str) -> dict[str, Any]:
    """Return the content of study.json.

    Args:
        study: Study, whose runs are all in ``results``.
        results: Content of metrics.json of each run, with its ``origin``.
        hash_of: Function that returns the configuration hash of a run.
        command: Command that reproduces the study.
    """
    rows = [_row(study, row, results, hash_of) for row in study.rows]
    runs = {
        hash_of(cell): results[cell]
        for row in study.rows
        for cell in needed_runs(row, results)
        if "diverged" not in results[cell]
    }
    verdicts = [number["verdict"] for row in rows for number in row["selections"][0]["metrics"].values()]
    return {
        "schema": SCHEMA,
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "text": study.text,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "matches": verdicts.count(verdict.MATCH),
        "compared": sum(one is not None for one in verdicts),
        "claims": [_claim(claim, study, results) for claim in study.claims],
        "runs": len(runs),
        "seconds": sum(run["seconds"]["total"] for run in runs.values()),
        "shared_seconds": sum(run["seconds"]["shared"] for run in runs.values()),
        "commits": sorted({run["origin"]["commit"] for run in runs.values()}),
        "versions": _different(run["versions"] for run in runs.values()),
        "machines": _different(run["origin"]["machine"] for run in runs.values()),
        "metrics": dict(study.metrics),
        **({"parts": list(study.parts)} if study.parts else {}),
        "rows": rows,
    }


def _row(study: Study, row: Row, results: Results, hash_of: Callable[[Cell], str]) -> dict[str, Any]:
    cells = [
        {
            "seed": cell.seed,
            "overrides": list(cell.overrides),
            "values": {metric: _defined(results[cell], key) for metric, key in study.metrics.items()},
            "config_hash": hash_of(cell),
            "fingerprint": results[cell]["data"].get("fingerprint"),
            "seconds": results[cell]["seconds"]["total"],
            "commit": results[cell]["origin"]["commit"],
        }
        for cell in (compared_runs(row, results) if row.like else needed_runs(row, results))
        if "diverged" not in results[cell]
    ]
    final = [results[cell] for cell in compared_runs(row, results)]
    return {
        "name": row.name,
        **({"part": row.part, "bytes": max(map(kept_bytes, final))} if row.part else {}),
        "command": " ".join(["python -m clbench.train", *row.overrides]),
        "findings": row.findings.strip(),
        "seconds": median(run["seconds"]["total"] for run in final),
        "grid": {key: list(values) for key, values in row.grid.items()},
        "baseline": row.baseline,
        "published_curve": {metric: [list(point) for point in points] for metric, points in row.curve.items()},
        "selections": [_selection(study, row, rule, results, hash_of) for rule in row.select or (None,)],
        "like": row.like,
        "trials": [] if row.like else [_trials(study, row, rule, results) for rule in row.select],
        "cells": cells,
    }


def _selection(
    study: Study, row: Row, rule: Selection | None, results: Results, hash_of: Callable[[Cell], str]
) -> dict[str, Any]:
    """Return the results at the point that a rule chose. ``rule`` is None in a row without a grid."""
    chosen: dict[str, Any] = {"by": None, "point": {}, "at_an_edge": []}
    if rule is not None:
        trials, best = search(row, rule, results)
        assert best is not None
        chosen = {"by": rule.key, "point": dict(used_part(row, best)), "at_an_edge": at_an_edge(row, trials, best)}
    cells = final_runs(row, chosen["point"], rule)
    values = {metric: [read_number(results[cell], key) for cell in cells] for metric, key in study.metrics.items()}
    metrics = {metric: _summarised(each) | _compared(row, metric, each) for metric, each in values.items()}
    return chosen | {"config_hashes": [hash_of(cell) for cell in cells], "values": values, "metrics": metrics}


def _trials(study: Study, row: Row, rule: Selection, results: Results) -> dict[str, Any]:
    """Return every point of the grid that a rule compared."""
    points = []
    for point, cells in search(row, rule, results)[0]:
        runs = [results[cell] for cell in dict.fromkeys([*cells, *diverged_runs(row, point, results)])]
        ended = [run for run in runs if "diverged" not in run]
        values = {
            metric: [number for run in ended if (number := _defined(run, key)) is not None]
            for metric, key in study.metrics.items()
        }
        numbers = {metric: _summarised(each) for metric, each in values.items() if each and len(each) == len(ended)}
        score = fmean(read_number(run, rule.key) for run in runs) if len(ended) == len(runs) else None
        points.append({"point": dict(point), "score": score, "diverged": len(runs) - len(ended), "metrics": numbers})
    return {"by": rule.key, "overrides": list(rule.overrides), "points": points}


def _summarised(values: Sequence[float]) -> dict[str, Any]:
    ours = summary(values)
    spread = {"sd": _or_none(ours.sd), "se": _or_none(ours.se), "interval": _or_none(ours.interval)}
    return {"mean": ours.mean, **spread, "n": ours.n}


def _compared(row: Row, metric: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the comparison with the published number, if there is one."""
    theirs = row.published.get(metric)
    if theirs is None:
        return {"published": None, "difference": None, "tolerance": None, "verdict": None}
    difference, tolerance, outcome = verdict.compare(summary(values), theirs)
    return {
        "published": asdict(theirs),
        "difference": difference,
        "tolerance": _or_none(tolerance),
        "verdict": outcome,
    }


def _claim(claim: Claim, study: Study, results: Results) -> dict[str, Any]:
    key = study.metrics[claim.metric]

    def values(name: str, read: Callable[[Any, str], float] = read_number) -> list[float]:
        return [read(results[cell], key) for cell in compared_runs(study.row(name), results)]

    if claim.share_of is not None:
        holds, measured = verdict.share(claim, values(claim.row), values(claim.share_of))
    elif claim.beats is not None and claim.on_at_least is not None:
        holds, measured = verdict.better(claim, values(claim.row, read_score), values(claim.beats, read_score))
    elif claim.beats is not None:
        ours, other = (summary(values(name, read_score)) for name in (claim.row, claim.beats))
        holds, measured = verdict.beats(claim, ours, other)
    else:
        signs = {sign_of(results[cell], key) for cell in compared_runs(study.row(claim.row), results)}
        holds, measured = verdict.reached(claim, values(claim.row), signs.pop())
    return {"text": claim.text, "row": claim.row, "measured": measured, "holds": holds}


def compared_runs(row: Row, results: Results) -> list[Cell]:
    """Return the final runs at the point that the first rule chose."""
    best = search(row, row.select[0], results)[1] if row.select else {}
    assert best is not None
    return final_runs(row, best)


def kept_bytes(run: Mapping[str, Any]) -> float:
    """Return the largest number of bytes that the strategy of a run has stored."""
    read = BUILT_IN["bytes"].read
    assert read is not None
    return read(run) or 0


def final_cells(row: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the runs of a row of study.json at the point that its first rule chose, by seed."""
    chosen = row["selections"][0]["config_hashes"]
    return {cell["seed"]: cell for cell in row["cells"] if cell["config_hash"] in chosen}


def _different(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    different: list[dict[str, Any]] = []
    for item in items:
        if item not in different:
            different.append(item)
    return different


def _defined(run: Mapping[str, Any], key: str) -> float | None:
    """Return ``read_number``, or None in a trial run without it, such as the forgetting of a single task."""
    try:
        return read_number(run, key)
    except ConfigError:
        return None


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number
