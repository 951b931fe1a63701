"""Read folders of runs into a data frame with one row per run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clbench.runs.find import FoundRun, find_runs, read_run
from clbench.runs.names import REFERENCES, name_runs

if TYPE_CHECKING:
    from pandas import DataFrame

MATRIX_METRICS = (
    "average_accuracy",
    "learning_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "min_accuracy",
    "worst_case_accuracy",
    "stability_gap",
)
SECONDS = ("train", "importance", "evaluation", "total")


def read(folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> DataFrame:
    """Return a data frame with one row per run in or below ``folders``, including failed and unfinished runs.

    Runs with the same ``benchmark`` and ``setup`` differ only in their seed:

    ``benchmark`` everything that a strategy does not decide: data, scenario, net, optimiser, epochs, ...
    ``method``    the strategy and its options without lam
    ``setup``     method and lam
    ``status``    complete, running (or stopped), failed, or repeated (a complete run with this seed is above it)
    ``problem``   why it is not complete

    Further columns: ``folder``, ``seed``, ``strategy``, ``data``, ``scenario``, ``net``, the options of the strategy, the
    keys of metrics.json under their names, ``validation_average_accuracy``, ``nll`` and ``ece`` (means over tasks),
    ``seconds_train`` and so on, ``bytes`` (size of the importance, maximum over tasks), ``intransigence`` relative to the
    reference run of the same benchmark and seed, ``chance`` (accuracy of guessing on the tasks so far, after each task),
    ``accuracy_matrix`` (an array), ``warnings`` of the penalty monitor (kind, text), ``versions``, ``overrides``,
    ``config`` (flat).

    >>> read("runs/sweep").groupby("setup").average_accuracy.mean()  # doctest: +SKIP

    Raises:
        ConfigError: a folder does not exist or contains no runs.
    """
    import pandas as pd

    single = isinstance(folders, str | os.PathLike)
    runs = [read_run(folder) for folder in find_runs(map(Path, [folders] if single else folders))]  # type: ignore[arg-type]
    frame = pd.DataFrame([_row(run) for run in runs])
    frame = pd.concat([frame, pd.DataFrame(name_runs(runs), index=frame.index)], axis=1)
    frame[["seed", "tasks"]] = frame[["seed", "tasks"]].astype("Int64")
    complete = frame.status == "complete"
    again = complete & frame[complete].duplicated(["benchmark", "setup", "seed"]).reindex(frame.index, fill_value=False)
    frame.loc[again, "status"] = "repeated"
    frame.loc[again, "problem"] = "same configuration and seed as a run above, so it is counted once"
    frame["intransigence"] = _intransigences(frame)
    return frame


def _row(run: FoundRun) -> dict[str, Any]:
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
        **dict.fromkeys(MATRIX_METRICS, np.nan),
        "validation_average_accuracy": np.nan,
        **dict.fromkeys(("nll", "ece", "bytes", *(f"seconds_{name}" for name in SECONDS)), np.nan),
        "accuracy_matrix": None,
        "chance": None,
        "versions": None,
        "config_hash": None,
        "warnings": [],
        "overrides": run.overrides,
        "config": config,
    }
    if run.metrics is not None:
        try:
            row |= _metrics(run.metrics)
            if run.failure is not None and row["status"] != "complete":
                row |= {"status": "failed", "problem": run.failure}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            row["problem"] = (
                f"metrics.json does not have the format of this clbench version: {type(error).__name__} {error}"
            )
    return row


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of metrics.json in a flat dictionary."""
    r = np.array(metrics["accuracy_matrix"], dtype=float)
    done = int(np.isfinite(r).all(1).sum())
    complete = metrics["status"] == "complete"
    per_task = metrics["per_task"] or []
    sizes = [len(classes) for classes in metrics["data"]["classes"]]
    return {
        "status": "complete" if complete else "running",
        "problem": None if complete else f"{done} of {len(r)} tasks done: running, or stopped",
        "tasks": len(r),
        **{name: _number(metrics[name]) for name in MATRIX_METRICS},
        "validation_average_accuracy": _number((metrics["validation"] or {}).get("average_accuracy")),
        "nll": _mean([task["nll"] for task in per_task]),
        "ece": _mean([task["ece"] for task in per_task]),
        "bytes": max((task["bytes"] for task in metrics["importance"]), default=np.nan),
        **{f"seconds_{name}": _number(metrics["seconds"][name]) for name in SECONDS},
        "accuracy_matrix": r,
        "chance": chance(sizes, metrics["data"]["scenario"]),
        "versions": dict(metrics["versions"]),
        "config_hash": metrics["config_hash"],
        "warnings": [(warning["kind"], warning["text"]) for warning in metrics["warnings"]],
    }


def chance(sizes: list[int], scenario: str) -> list[float]:
    """Return the accuracy of guessing among the competing outputs: the mean over the tasks so far, after each task.

    Args:
        sizes: number of classes of each task.
        scenario: task, domain or class.
    """
    if scenario == "class":
        return [1 / seen for seen in accumulate(sizes)]
    each = [1 / size for size in sizes]
    return [float(np.mean(each[: i + 1])) for i in range(len(each))]


def _intransigences(frame: DataFrame) -> list[float]:
    """Return mean_j ( R*[j, j] - R[j, j] ) of each run, or nan.

    R* is from the run of the same seed of the first reference in REFERENCES that the run's benchmark has.
    """
    learned: dict[str, dict[str, dict[Any, float]]] = {}
    for row in frame[(frame.status == "complete") & frame.strategy.isin(REFERENCES)].itertuples():
        learned.setdefault(row.benchmark, {}).setdefault(row.strategy, {}).setdefault(row.seed, row.learning_accuracy)
    best = {
        benchmark: next(by_seed[name] for name in REFERENCES if name in by_seed)
        for benchmark, by_seed in learned.items()
    }
    return [
        best.get(row.benchmark, {}).get(row.seed, np.nan) - row.learning_accuracy
        if row.status == "complete"
        else np.nan
        for row in frame.itertuples()
    ]


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _mean(values: list[Any]) -> float:
    numbers = [_number(value) for value in values]
    return float(np.mean(numbers)) if numbers else np.nan
