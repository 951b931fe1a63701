"""Edited and damaged numbers of a metrics.json are found from its own accuracy matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clbench.runs.contradictions import contradictions

RUNS = sorted((Path(__file__).parents[1] / "finished_runs").glob("*/*/metrics.json"))


@pytest.fixture
def metrics():
    return json.loads(RUNS[0].read_text(encoding="utf-8"))


def test_finished_runs_contradict_nothing():
    assert RUNS
    for file in RUNS:
        assert contradictions(json.loads(file.read_text(encoding="utf-8"))) == [], file


def test_an_unfinished_run_contradicts_nothing(metrics):
    unfinished = [metrics["accuracy_matrix"][0], *[[None] * len(row) for row in metrics["accuracy_matrix"][1:]]]
    undefined = {name: None for name in metrics if "accuracy" in name or "forget" in name or "transfer" in name}
    kept = {"accuracy_matrix": unfinished, "initial_accuracy": metrics["initial_accuracy"], "per_task": []}
    assert contradictions({**metrics, **undefined, **kept, "status": "running", "validation": None}) == []


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (["average_accuracy"], 0.99, "average_accuracy is 0.99, but the accuracy matrix gives 0."),
        (["average_accuracy"], "high", "average_accuracy is high, but"),
        (["average_accuracy"], None, "average_accuracy is None, but"),
        (["average_accuracy"], True, "average_accuracy is True, but"),
        (["forgetting"], 1, "forgetting is 1, but"),
        (["forward_transfer"], 0.5, "forward_transfer is 0.5, but the accuracy matrix gives null"),
        (["accuracy_matrix", 0, 0], 0.111, "learning_accuracy is "),
        (["accuracy_matrix", 1, 0], 7.0, "accuracies between 0 and 1"),
        (["accuracy_matrix", 0, 0], None, "learned tasks before the others"),
        (["accuracy_matrix", -1], [None] * 5, "status is complete, but the accuracy matrix has 4 of 5 tasks"),
        (["accuracy_matrix"], [[0.5]], "data.tasks has 5 tasks, but the accuracy matrix has 1"),
        (["accuracy_matrix"], [[0.5, 0.5]], "expected a row of T accuracies"),
        (["accuracy_matrix"], "none", "expected a row of T accuracies"),
        (["accuracy_matrix"], [], "expected a row of T accuracies"),
        (["data", "tasks"], 3, "data.tasks has 3 tasks"),
        (["data", "classes"], [[0, 1]], "data.classes has 1 tasks"),
        (["per_task", 0, "accuracy"], 0.9, "per_task[0].accuracy is 0.9, but the accuracy matrix gives"),
        (["per_task"], [3], "per_task has 1 tasks"),
        (["within_tasks"], [{"step": 3}], "the metrics cannot be computed from the accuracies"),
        (["validation", "average_accuracy"], 0.99, "validation.average_accuracy is 0.99, but"),
        (["validation", "accuracy_matrix"], [[0.5]], "validation.accuracy_matrix: expected as many tasks"),
        (["validation"], 3, "validation.accuracy_matrix: expected as many tasks"),
    ],
)
def test_a_changed_number_is_found(metrics, path, value, text):
    part = metrics
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert any(text in found for found in contradictions(metrics)), contradictions(metrics)


def test_files_of_older_versions_lack_keys(metrics):
    assert contradictions({key: metrics[key] for key in ("status", "accuracy_matrix", "average_accuracy")}) == []
