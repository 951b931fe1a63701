"""Run folders of bits per byte, of which lower is better: files, contradictions, differences, figures and the objective."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from clbench.errors import ConfigError
from clbench.metrics.quality import ACCURACY, QUALITIES
from clbench.runs.contradictions import contradictions
from clbench.runs.diff import difference, summarize
from clbench.runs.folder import RunFolder
from clbench.runs.nesting import is_run
from clbench.runs.objective import add_new_metrics, check_direction, objective
from clbench.runs.plots import accuracy_matrix, save_plots
from tests.make_finished_runs import FINISHED_RUNS, edit
from tests.runs_of_bits import BITS, bits, to_bits, write_bits_runs

R = np.array([[2.0, 8.0], [3.0, 2.5]])
RUN = {
    "status": "running",
    "strategy": {"name": "ewc"},
    "data": {"scenario": "task"},
    "seed": 3,
    "quality": BITS.describe(),
    "quality_matrix": R.tolist(),
    "initial_quality": [math.nan, math.nan],
    "within_tasks": [],
    "warnings": [],
    "validation": {"quality_matrix": [[2.0, 8.0], [4.0, 3.0]], "average_quality": 3.5},
    "seconds": dict.fromkeys(("train", "importance", "evaluation", "shared", "total"), 0.0),
    "config_hash": "abc",
}
OF_ACCURACY = json.loads(next(FINISHED_RUNS.glob("task_incremental/*/metrics.json")).read_text(encoding="utf-8"))


def test_a_run_is_written_and_read_with_the_keys_of_its_quality(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    folder.write_metrics(RUN)
    table = (tmp_path / "quality_matrix.csv").read_text(encoding="utf-8")
    assert table == "after_task_index,task_index_0,task_index_1\n0,2.0,8.0\n1,3.0,2.5\n"
    assert not (tmp_path / "accuracy_matrix.csv").exists() and is_run(tmp_path)
    found = RunFolder(tmp_path, "abc").metrics()
    assert found["quality_matrix"] == R.tolist() and found["initial_quality"] == [None, None]
    complete, added = add_new_metrics(folder, found, [])
    assert complete["forgetting"] == 1.0 and "average_quality" in added


def test_a_missing_table_of_a_complete_run_is_written_again(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    results, _ = add_new_metrics(folder, {**RUN, "initial_quality": [None, None]}, [])
    (tmp_path / "quality_matrix.csv").unlink()
    assert add_new_metrics(folder, results, [])[1] == []
    assert (tmp_path / "quality_matrix.csv").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quality": {"name": "beauty", "direction": "higher"}}, "quality: expected a quality with its direction"),
        ({"quality": ACCURACY.describe()}, "accuracy_matrix is missing"),
        ({"quality_matrix": [[2.0, 8.0], []]}, "quality_matrix: expected numbers in each row"),
        ({"initial_quality": None}, "initial_quality is missing"),
    ],
)
def test_an_unknown_quality_or_a_missing_key_is_refused(tmp_path, values, message):
    RunFolder(tmp_path, "abc").write_metrics(RUN)
    edit(tmp_path / "metrics.json", **values)
    with pytest.raises(ConfigError, match=message):
        RunFolder(tmp_path, "abc")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (["average_quality"], 1.0, "average_quality is 1.0, but the bits per byte matrix gives"),
        (["forgetting"], -9.0, "forgetting is -9.0, but the bits per byte matrix gives"),
        (["quality_matrix", 0, 0], -1.0, "quality_matrix: expected values of bits per byte of at least 0"),
        (["per_task", 0, "quality"], 0.1, "per_task[0].quality is 0.1, but the bits per byte matrix gives"),
        (["validation", "average_quality"], 0.1, "validation.average_quality is 0.1, but"),
        (["initial_quality"], [1.0], "initial_quality has 1 tasks, but the bits per byte matrix has 2"),
        (["quality"], {"name": "beauty", "direction": "higher"}, "quality: expected a quality with its direction"),
    ],
)
def test_a_changed_number_is_found(path, value, text):
    results = json.loads(json.dumps(to_bits(OF_ACCURACY)))
    assert contradictions(results) == []
    part = results
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert any(text in found for found in contradictions(results)), contradictions(results)


def test_both_matrices_of_a_run_of_accuracy_must_agree():
    matrix = OF_ACCURACY["accuracy_matrix"]
    described = {**OF_ACCURACY, "quality": ACCURACY.describe(), "quality_matrix": matrix}
    assert contradictions(described) == []
    assert contradictions({**described, "quality_matrix": bits(matrix)}) == [
        "quality_matrix differs from accuracy_matrix"
    ]


def test_runs_of_two_qualities_differ_and_old_files_do_not(tmp_path):
    folder = write_bits_runs(tmp_path / "bits")
    name = sorted(file.parent.name for file in folder.glob("*/metrics.json"))[0]
    accuracy = FINISHED_RUNS / "task_incremental" / name
    found = difference(accuracy, folder / name)
    assert summarize(found) == "the results differ: A contains accuracy and B contains bits per byte"
    assert difference(folder / name, folder / name).is_identical
    described = json.loads((accuracy / "metrics.json").read_text(encoding="utf-8"))
    described |= {"quality": ACCURACY.describe(), "quality_matrix": described["accuracy_matrix"]}
    (folder / name / "metrics.json").write_text(json.dumps(described), encoding="utf-8")
    assert difference(accuracy, folder / name).is_identical


@pytest.mark.parametrize("key", ["validation.average_accuracy", "validation.average_quality"])
def test_an_objective_may_be_named_as_of_any_quality(key):
    assert objective(RUN, key) == 3.5
    assert objective({**RUN, "validation": None}, key) == 2.75
    assert objective(OF_ACCURACY, key) == OF_ACCURACY["validation"]["average_accuracy"]


def test_a_missing_objective_of_another_quality_is_computed():
    assert objective(RUN, "validation.forgetting") == 2.0
    assert objective(RUN, "min_accuracy") == 3.0


@pytest.mark.parametrize(
    ("quality", "key", "direction", "better"),
    [
        ("bits_per_byte", "validation.average_accuracy", "maximize", "minimize"),
        ("mse", "average_quality", "maximize", "minimize"),
        ("accuracy", "validation.average_accuracy", "minimize", "maximize"),
        ("mean_iou", "validation.forgetting", "maximize", "minimize"),
    ],
)
def test_a_search_for_the_worst_value_is_refused(quality, key, direction, better):
    message = f"hydra.sweeper.direction={direction}: expected {better}, .* Try hydra.sweeper.direction={better}"
    with pytest.raises(ConfigError, match=message):
        check_direction(QUALITIES[quality], key, direction)
    check_direction(QUALITIES[quality], key, better)
    check_direction(QUALITIES[quality], key, None)  # a grid
    check_direction(QUALITIES[quality], "seconds.total", direction)


def test_figures_have_the_names_and_labels_of_the_quality(tmp_path):
    within = [{"task": 1, "step": 5, "quality": [2.5, 4.0]}]
    save_plots(R, within, "title", tmp_path, BITS)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"quality_matrix.png", "quality_over_tasks.png", "quality_within_tasks.png"}
    axes, bar = accuracy_matrix(R, "title", BITS).axes
    assert bar.get_ylabel() == "test bits per byte"
    assert axes.images[0].get_clim() == (2.0, 8.0)


@pytest.mark.parametrize("quality", ["accuracy", "bits_per_byte"])
def test_a_better_value_is_brighter_and_its_number_darker(quality):
    best, worst = sorted((0.1, 0.9), reverse=QUALITIES[quality].higher_is_better)
    axes = accuracy_matrix(np.array([[best, worst]] * 2), "title", QUALITIES[quality]).axes[0]
    image = axes.images[0]
    bright, dark = (sum(image.cmap(image.norm(value))[:3]) for value in (best, worst))
    assert bright > dark
    assert [text.get_color() for text in axes.texts[:2]] == ["black", "white"]


def test_equal_values_are_drawn(tmp_path):
    save_plots(np.full((2, 2), 3.0), [], "title", tmp_path, BITS)
    assert len(list(tmp_path.glob("quality_*.png"))) == 2
