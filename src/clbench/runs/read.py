"""Read folders of runs into a data frame with one row per run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clbench.errors import ConfigError
from clbench.metrics.extra import is_description
from clbench.metrics.metric import Metric
from clbench.metrics.registry import metrics_of
from clbench.runs.contradictions import contradictions
from clbench.runs.find import FoundRun, find_runs, read_run
from clbench.runs.json_files import COMPLETE, NUMBER, PARTIAL, REMEDY, RUNNING, mismatch
from clbench.runs.names import REFERENCES, name_runs, printable

if TYPE_CHECKING:
    from pandas import DataFrame


def read(folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> DataFrame:
    """Return a data frame with one row per run in or below ``folders``, including failed and unfinished runs.

    A run that cannot be read has the status failed and changes no other row. Runs with the same ``benchmark`` and ``setup``
    differ only in their seed:

    - ``benchmark``: everything that does not depend on the strategy: data, scenario, net, optimiser, epochs, ...
    - ``method``: the strategy and its options except for lam
    - ``setup``: method and lam
    - ``status``: complete, running (or interrupted), failed, partial (trained on a part of its batches or steps), inconsistent
      (metrics.json contradicts its accuracy matrix), or repeated (an earlier row has the same seed)
    - ``problem``: the reason why the run is not complete, and is excluded from statistics

    Further columns: every metric (listed in ``clbench.metrics.registry``, explained in docs/metrics.md); ``folder``,
    ``seed``, ``strategy``, ``data``, ``scenario``, ``net``, the options of the strategy, ``chance`` (accuracy of guessing on
    the tasks so far, after each task), ``accuracy_matrix`` (an array), ``warnings`` of the penalty monitor (kind, text),
    ``versions``, ``extra_metrics``, ``overrides``, ``config`` (dotted keys).

    If metrics.json of an older version lacks a metric, the metric is computed from the accuracies. It is nan if this is not
    possible.

    >>> read("runs/sweep").groupby("setup").average_accuracy.mean()  # doctest: +SKIP

    Raises:
        ConfigError: A folder does not exist or contains no runs.
    """
    import pandas as pd

    single = isinstance(folders, str | os.PathLike)
    runs = [read_run(folder) for folder in find_runs(map(Path, [folders] if single else folders))]  # type: ignore[arg-type]
    metrics = metrics_of(map(_extra_metrics, runs))
    frame = pd.DataFrame([_row(run, metrics) for run in runs])
    frame = pd.concat([frame, pd.DataFrame(name_runs(runs), index=frame.index)], axis=1)
    frame[["seed", "tasks"]] = frame[["seed", "tasks"]].astype("Int64")
    complete = frame.status == COMPLETE
    has_several = frame[complete].groupby("benchmark").tasks.transform("nunique").reindex(frame.index) > 1
    # the data has changed between runs with different numbers of tasks
    frame.loc[has_several, "benchmark"] += ", " + frame.tasks.astype(str) + " tasks"
    repeated = complete & frame[complete].duplicated(["benchmark", "setup", "seed"]).reindex(
        frame.index, fill_value=False
    )
    frame.loc[repeated, "status"] = "repeated"
    frame.loc[repeated, "problem"] = "same configuration and seed as an earlier run, so it is not counted"
    frame["intransigence"] = _intransigences(frame)
    return frame


def _row(run: FoundRun, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the columns of one run, except for its names."""
    config = run.config
    row: dict[str, Any] = {
        "folder": str(run.folder),
        "status": "failed",
        "problem": run.problem,
        "seed": config.get("seed"),
        "data": config.get("data.name"),
        "scenario": config.get("scenario.name"),
        "net": run.choices.get("net"),
        "tasks": None,
        **dict.fromkeys(metrics, np.nan),
        "accuracy_matrix": None,
        "chance": None,
        "versions": {},
        "config_hash": None,
        "warnings": [],
        "extra_metrics": _extra_metrics(run),
        "overrides": run.overrides,
        "config": config,
    }
    if run.metrics is not None:
        try:
            row |= _results(run.metrics, metrics)
            if run.failure is not None and row["status"] != "complete":
                row |= {"status": "failed", "problem": run.failure}
        except ConfigError as error:
            row["problem"] = str(error)
    return row | {"problem": row["problem"] and printable(row["problem"])}


def _results(results: Mapping[str, Any], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the contents of metrics.json as columns. Files of older versions need only ``status`` and R.

    Raises:
        ConfigError: A metric is not a number, or its function fails.
    """
    if (wrong := mismatch(results, {f"{name}?": NUMBER for name in metrics})) is not None:
        raise ConfigError(f"metrics.json cannot be read: {wrong}. {REMEDY}")
    status, problem = _status(results)
    r = np.array(results["accuracy_matrix"], dtype=float)
    data = results.get("data") or {}
    sizes = [len(classes) for classes in data.get("classes") or []]
    return {
        "status": status,
        "problem": problem,
        "tasks": len(r),
        **{name: metric.read_from(results) for name, metric in metrics.items()},
        "accuracy_matrix": r,
        "chance": chance(sizes, data.get("scenario") or "task") if sizes else [np.nan] * len(r),
        "versions": results.get("versions") or {},
        "config_hash": results.get("config_hash"),
        "warnings": [
            (printable(warning["kind"]), printable(warning["text"])) for warning in results.get("warnings") or []
        ],
    }


def _status(results: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the status of a run, and the reason if it is not complete."""
    if results["status"] == RUNNING:
        r = np.array(results["accuracy_matrix"], dtype=float)
        return RUNNING, f"{int(np.isfinite(r).all(1).sum())} of {len(r)} tasks done: running or interrupted"
    if found := contradictions(results):
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        return "inconsistent", f"metrics.json contradicts its accuracy matrix: {found[0]}{more}. {REMEDY}"
    if results["status"] == PARTIAL:
        reasons = results.get("partial") or ["trained on a part of its batches or steps"]
        return PARTIAL, f"partial: {', '.join(reasons)}"
    return COMPLETE, None


def _extra_metrics(run: FoundRun) -> dict[str, dict[str, Any]]:
    """Return the descriptions of the metrics of the user in a run, without those that tables cannot show."""
    described = (run.metrics or {}).get("extra_metrics")
    return (
        {name: about for name, about in described.items() if is_description(name, about)}
        if isinstance(described, dict)
        else {}
    )


def chance(sizes: list[int], scenario: str) -> list[float]:
    """Return the accuracy of guessing among the competing outputs: the mean over the tasks so far, after each task.

    Args:
        sizes: Number of classes of each task.
        scenario: ``task``, ``domain`` or ``class``.
    """
    if scenario == "class":
        sizes = list(accumulate(sizes))
    each = [1 / size if size else np.nan for size in sizes]
    if scenario == "class":
        return each
    return [float(np.mean(each[: i + 1])) for i in range(len(each))]


def _intransigences(frame: DataFrame) -> list[float]:
    """Return mean_j ( R*[j, j] - R[j, j] ) of each run, or nan.

    R* is the matrix of the first strategy in REFERENCES with results on the same benchmark, with the same seed.
    """
    learned: dict[str, dict[str, dict[Any, float]]] = {}
    for row in frame[(frame.status == COMPLETE) & frame.strategy.isin(REFERENCES)].itertuples():
        learned.setdefault(row.benchmark, {}).setdefault(row.strategy, {}).setdefault(row.seed, row.learning_accuracy)
    best = {
        benchmark: next(by_seed[name] for name in REFERENCES if name in by_seed)
        for benchmark, by_seed in learned.items()
    }
    return [
        best.get(row.benchmark, {}).get(row.seed, np.nan) - row.learning_accuracy if row.status == COMPLETE else np.nan
        for row in frame.itertuples()
    ]
