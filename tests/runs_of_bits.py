"""Run folders of bits per byte, made from the finished runs of accuracy: an accuracy a becomes 8 (1 - a) bits per byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from clbench.metrics.quality import QUALITIES
from clbench.metrics.registry import BUILT_IN, add_metrics
from tests.make_finished_runs import FINISHED_RUNS, edit

BITS = QUALITIES["bits_per_byte"]


def bits(accuracy: Any) -> Any:
    """Return bits per byte for an accuracy, or for nested lists of accuracies. None stays None."""
    if isinstance(accuracy, list):
        return [bits(each) for each in accuracy]
    return None if accuracy is None else 8 * (1 - accuracy)


def to_bits(results: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of metrics.json of a run of bits per byte, for those of a run of accuracy."""
    kept = {key: value for key, value in results.items() if key not in BUILT_IN and "accuracy" not in key}
    within = [{"task": w["task"], "step": w["step"], "quality": bits(w["accuracy"])} for w in results["within_tasks"]]
    validation = results["validation"] and {"quality_matrix": bits(results["validation"]["accuracy_matrix"])}
    evaluated = {
        "quality": BITS.describe(),
        "quality_matrix": bits(results["accuracy_matrix"]),
        "initial_quality": bits(results["initial_accuracy"]),
        "per_task": [{"quality": bits(task["accuracy"])} for task in results["per_task"]],
        "within_tasks": within,
        "validation": validation,
    }
    return add_metrics({**kept, **evaluated}, BUILT_IN)


def write_bits_runs(folder: Path, data: str | None = None) -> Path:
    """Write a sweep of 30 runs of bits per byte to ``folder``: fine-tuning, EWC with several lams, joint from scratch.

    Args:
        folder: New folder.
        data: Name of the data set, None for that of the runs of accuracy.
    """
    shutil.copytree(FINISHED_RUNS / "task_incremental", folder)
    for file in folder.glob("*/metrics.json"):
        file.write_text(json.dumps(to_bits(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
        if data is not None:
            about = file.with_name("config.json")
            choices = json.loads(about.read_text(encoding="utf-8"))["choices"]
            edit(about, choices={**choices, "data": data})
    return folder
