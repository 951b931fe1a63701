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
from clbench.metrics.quality import ACCURACY, QUALITIES, quality_of
from clbench.metrics.registry import BUILT_IN, metrics_of
from clbench.metrics.results import learned_tasks, read_matrix
from clbench.runs.contradictions import contradictions
from clbench.runs.find import FoundRun, find_runs, read_run
from clbench.runs.json_files import COMPLETE, NUMBER, PARTIAL, REMEDY, RUNNING, mismatch
from clbench.runs.names import REFERENCES, name_runs, printable
from clbench.runs.sweep_index import read_index

if TYPE_CHECKING:
    from pandas import DataFrame, Series

NOT_SELECTED = "not selected"
"""Status of a run whose lam lost against another one on the first tasks (select_lam_on_first_tasks)."""


def read(folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> DataFrame:
    """Return a data frame with one row per run in or below ``folders``, including failed and unfinished runs.

    A run that cannot be read has the status failed and changes no other row. Runs with the same ``benchmark`` and ``setup``
    differ only in their seed:

    - ``benchmark``: everything that does not depend on the strategy: data, scenario, net, optimiser, epochs, ...
    - ``method``: the strategy and its options except for lam
    - ``setup``: method and lam
    - ``status``: complete, running (or interrupted), not selected (another lam was, on the first tasks), failed, partial
      (trained on a part of its batches or steps), inconsistent (metrics.json contradicts its accuracy matrix), or repeated (an
      earlier row has the same seed)
    - ``problem``: the reason why the run is not complete, and is excluded from statistics

    Further columns: every metric (listed in ``clbench.metrics.registry``, explained in docs/metrics.md); ``folder``,
    ``seed``, ``strategy``, ``data``, ``scenario``, ``net``, the options of the strategy, ``chance`` (accuracy of guessing on
    the tasks so far, after each task), ``accuracy_matrix`` (an array), ``warnings`` of the penalty monitor (kind, text),
    ``versions``, ``extra_metrics``, ``overrides``, ``config`` (dotted keys), ``quality`` (name of the quality in R).

    Runs of another quality than accuracy have their values in the columns ``quality_matrix``, ``average_quality`` and so on,
    as in metrics.json, and nan in those of accuracy. These columns exist only if there are such runs.

    If metrics.json of an older version lacks a metric, the metric is computed from the accuracies. It is nan if this is not
    possible.

    >>> read("runs/sweep").groupby("setup").average_accuracy.mean()  # doctest: +SKIP

    Raises:
        ConfigError: A folder does not exist or contains no runs.
    """
    frame = read_runs(folders)
    others = frame[frame.quality.notna() & (frame.quality != ACCURACY.name)]
    keys = {name: metric.key(QUALITIES[quality]) for quality in others.quality for name, metric in BUILT_IN.items()}
    keys = {name: key for name, key in keys.items() if name != key}
    if len(others):
        frame[list(keys.values())] = others[list(keys)].rename(columns=keys)
        frame["quality_matrix"] = others.accuracy_matrix
        frame.loc[others.index, [*keys]] = np.nan
        frame.loc[others.index, "accuracy_matrix"] = None
    return frame


def read_runs(folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> DataFrame:
    """Return the data frame of ``read`` with the same columns for every quality.

    The columns of accuracy, such as ``average_accuracy``, contain the values of the quality in the column ``quality``. Reports
    and the functions of ``clbench.report.summary`` use this frame.

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
    frame["benchmark"] += _distinct_qualities(frame[complete]).reindex(frame.index, fill_value="")
    repeated = complete & frame[complete].duplicated(["benchmark", "setup", "seed"]).reindex(
        frame.index, fill_value=False
    )
    frame.loc[repeated, "status"] = "repeated"
    frame.loc[repeated, "problem"] = "same configuration and seed as an earlier run, so it is not counted"
    frame["intransigence"] = _intransigences(frame)
    return frame


def _distinct_qualities(complete: DataFrame) -> Series:
    """Return an addition to the names of benchmarks whose runs have several qualities, so that no values are mixed."""
    has_several = complete.groupby("benchmark").quality.transform("nunique") > 1
    return (", quality=" + complete.quality).where(has_several & (complete.quality != ACCURACY.name), "")


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
        "quality": None,
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
            if row["status"] == RUNNING and (
                tasks := read_index(run.folder.parent)["not_selected"].get(run.folder.name)
            ):
                row |= {
                    "status": NOT_SELECTED,
                    "problem": f"not selected after {tasks} task{'' if tasks == 1 else 's'}",
                }
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
    quality = quality_of(results)
    if (wrong := mismatch(results, {f"{metric.key(quality)}?": NUMBER for metric in metrics.values()})) is not None:
        raise ConfigError(f"metrics.json cannot be read: {wrong}. {REMEDY}")
    status, problem = _status(results)
    r = read_matrix(results, quality)
    data = results.get("data") or {}
    sizes = [len(classes) for classes in data.get("classes") or []]
    return {
        "status": status,
        "problem": problem,
        "tasks": len(r),
        "quality": quality.name,
        **{name: metric.read_from(results) for name, metric in metrics.items()},
        "accuracy_matrix": r,
        "chance": chance(sizes, data.get("scenario") or "task") if sizes and quality == ACCURACY else [np.nan] * len(r),
        "versions": results.get("versions") or {},
        "config_hash": results.get("config_hash"),
        "warnings": [
            (printable(warning["kind"]), printable(warning["text"])) for warning in results.get("warnings") or []
        ],
    }


def _status(results: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the status of a run, and the reason if it is not complete."""
    if results["status"] == RUNNING:
        r = read_matrix(results, quality_of(results))
        return RUNNING, f"{learned_tasks(r)} of {len(r)} tasks done: running or interrupted"
    if found := contradictions(results):
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        matrix = f"{quality_of(results).label} matrix"
        return "inconsistent", f"metrics.json contradicts its {matrix}: {found[0]}{more}. {REMEDY}"
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
    """Return mean_j ( R*[j, j] - R[j, j] ) of each run, of -R where lower values are better, or nan.

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
        QUALITIES[row.quality].sign * (best.get(row.benchmark, {}).get(row.seed, np.nan) - row.learning_accuracy)
        if row.status == COMPLETE
        else np.nan
        for row in frame.itertuples()
    ]
