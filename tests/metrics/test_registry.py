"""Records of metrics: order, directions and formats, custom metrics, and runs of older versions."""

import subprocess
import sys

import numpy as np
import pytest

from clbench.errors import ConfigError
from clbench.metrics import registry
from clbench.metrics.extra import RESERVED, make_metric
from clbench.metrics.registry import (
    BUILT_IN,
    add_metrics,
    describe_extra,
    load_metrics,
    metrics_of,
    register,
    summarize,
)

R = [[0.9, 0.2], [0.7, 0.8]]


def worst_task(matrix, initial, mid_task):
    """lowest accuracy on a task at the end.

    More about it.
    """
    return matrix[-1].min()


worst_task.higher_is_better = True
worst_task.format = ".1%"


def undefined(matrix):
    return None


def test_a_report_and_the_registry_import_no_torch():
    code = (
        "import sys; from clbench.metrics.registry import load_metrics; load_metrics(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_lower_is_better_for_losses_and_costs_have_no_direction():
    lower = {name for name, metric in BUILT_IN.items() if metric.higher_is_better is False}
    assert lower == {"forgetting", "stability_gap", "intransigence", "nll", "ece"}
    unknown = {name for name, metric in BUILT_IN.items() if metric.higher_is_better is None}
    assert unknown == {"bytes", *(f"seconds_{part}" for part in ("total", "train", "importance", "evaluation"))}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("average_accuracy", 0.87349, "0.873"),
        ("forgetting", -0.0001, "0.000"),
        ("seconds_total", 4.25, "4.2"),
        ("seconds_total", 100, "100"),
        ("seconds_total", 12345.6, "12,346"),
        ("bytes", 1536, "1.5 kB"),
        ("bytes", 12, "12 B"),
        ("bytes", 1000, "1.0 kB"),
        ("bytes", 3.2e8, "320 MB"),
    ],
)
def test_a_value_has_the_format_of_its_metric(name, value, text):
    assert BUILT_IN[name].text(value) == text


def test_a_user_function_is_a_metric_after_the_built_in_ones():
    """It comes after the built-in metrics that are computed from accuracies."""
    metrics = load_metrics(["tests.metrics.test_registry.worst_task"])
    record = metrics["worst_task"]
    assert list(metrics).index("worst_task") == list(BUILT_IN).index("stability_gap") + 1
    assert [name for name in metrics if name != "worst_task"] == list(BUILT_IN)
    assert (record.meaning, record.heading) == ("lowest accuracy on a task at the end", "worst task")
    assert record.higher_is_better is True
    assert record.text(0.5) == "50.0%"
    assert summarize(metrics, R)["worst_task"] == 0.7
    assert "worst_task" not in load_metrics(), "metrics.extra is of one run"


def test_a_finished_run_is_read_without_the_metric_functions():
    """The run stores the description of each user metric."""
    described = describe_extra(load_metrics(["tests.metrics.test_registry.worst_task"]))
    record = metrics_of([None, described])["worst_task"]
    assert record.function is None
    assert record.read_from({"worst_task": 0.7, "accuracy_matrix": R}) == 0.7
    assert np.isnan(record.read_from({"accuracy_matrix": R}))
    assert (record.meaning, record.text(0.5)) == ("lowest accuracy on a task at the end", "50.0%")


def test_a_function_may_be_registered_twice():
    """A registered function is a metric of this process."""
    program = (
        "from tests.metrics.test_registry import FINISHED, load_metrics, register, worst_task\n"
        "assert register(worst_task) is worst_task\n"
        "register(worst_task)  # the cell of a notebook runs again\n"
        "print(load_metrics()['worst_task'].read_from(FINISHED))\n"
        "print('worst_task' in load_metrics(['tests.metrics.test_registry.worst_task']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0.7", "True"], done.stderr


def of(**attributes):
    """Return a function with an invalid attribute."""

    def metric(matrix):
        return 0.5

    for name, value in attributes.items():
        setattr(metric, name, value)
    return metric


def fails(matrix):
    return 1 / (matrix[-1].sum() and 0)


def changes_its_argument(matrix):
    matrix[:] = 0
    return 0.0


def other_parameters(r, b):
    return 0.0


def returns_text(matrix):
    return "high"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (0.5, "expected a function, got 0.5"),
        (max, r"expected parameters named matrix, initial and mid_task.*Try def max\(matrix, initial, mid_task\)"),
        (other_parameters, r"expected parameters named matrix.*got \(r, b\)"),
        (
            fails,
            r"fails fails on the accuracies \[\[1.0\]\], initial None: ZeroDivisionError.*Return a number, or None",
        ),
        (changes_its_argument, "changes_its_argument fails on .* read-only"),
        (returns_text, "returns_text fails on .* could not convert string"),
        (of(higher_is_better="yes"), "higher_is_better='yes': expected True, False or None"),
        (of(format=".3q"), "format='.3q': expected a specification such as"),
        (of(__name__="status"), "status is already a key of metrics.json or a column. Rename the function"),
        (of(__name__="forgetting"), "forgetting: another metric has this name. Rename the function"),
    ],
)
def test_an_invalid_metric_is_one_error(function, message):
    with pytest.raises(ConfigError, match=message):
        register(function)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["no_such_module.metric"], r"metrics.extra=\[no_such_module.metric\] cannot be imported: No module named"),
        (["tests.metrics.test_registry.nope"], "cannot be imported: .*nope"),
        (["tests.metrics.test_registry.R"], "expected a function, got "),
        ("tests.worst_task", r"expected a list of functions. Try metrics.extra=\[tests.worst_task\]"),
        (None, "expected a list of functions"),
    ],
)
def test_an_unusable_extra_metric_is_one_error_before_training(paths, message):
    with pytest.raises(ConfigError, match=message):
        load_metrics(paths)


def test_a_metric_may_be_undefined_and_needs_no_docstring():
    assert make_metric(undefined, "here").meaning == ""


def test_names_of_built_in_metrics_are_not_reserved():
    assert not RESERVED & BUILT_IN.keys()


# --- runs of older versions -------------------------------------------------------------------------------------------

FINISHED = {
    "accuracy_matrix": [[0.9, 0.2], [0.7, 0.8]],
    "initial_accuracy": [0.1, 0.1],
    "within_tasks": [{"task": 1, "step": 5, "accuracy": [0.5, 0.3]}],
    "data": {"scenario": "domain"},
    "per_task": [{"accuracy": 0.7, "nll": 0.3, "ece": 0.1}, {"accuracy": 0.8, "nll": 0.5, "ece": 0.2}],
    "seconds": {"train": 1.0, "importance": 2.0, "evaluation": 3.0, "total": 7.0},
    "importance": [{"bytes": 8}, {"bytes": 16}],
    "validation": {"average_accuracy": 0.6},
}


def test_metrics_missing_in_an_older_run_are_computed():
    """They are computed from the accuracy matrix and the other values of the run."""
    found = {name: metric.read_from(FINISHED) for name, metric in BUILT_IN.items()}
    matrix, mid_task = FINISHED["accuracy_matrix"], [registry.MidTaskEvaluation(**FINISHED["within_tasks"][0])]
    expected = summarize(BUILT_IN, matrix, FINISHED["initial_accuracy"], mid_task, shares_outputs=True)
    assert {name: found[name] for name in expected} == expected
    others = {"nll": 0.4, "ece": 0.15, "validation_average_accuracy": 0.6, "seconds_total": 7.0, "bytes": 16}
    assert {name: found[name] for name in others} == pytest.approx(others)


def test_metrics_of_a_finished_run_are_added_from_its_accuracies():
    """On test data with the accuracies before and inside tasks, on validation data without them. A stored value stays."""
    added = {name: BUILT_IN[name] for name in ("forward_transfer", "min_accuracy", "backward_transfer", "forgetting")}
    on_validation = [[0.6, 0.1], [0.5, 0.4]]
    results = {**FINISHED, "forgetting": 0.5, "extra_metrics": {}, "validation": {"accuracy_matrix": on_validation}}
    found = add_metrics(results, added)
    expected = {"forward_transfer": 0.2 - 0.1, "min_accuracy": 0.5, "backward_transfer": 0.7 - 0.9, "forgetting": 0.5}
    assert {name: found[name] for name in added} == pytest.approx(expected)
    assert found["validation"]["backward_transfer"] == pytest.approx(0.5 - 0.6)
    assert found["validation"]["forward_transfer"] is None
    assert add_metrics({**results, "initial_accuracy": [None, None]}, added)["forward_transfer"] is None
    assert add_metrics({**results, "data": {"scenario": "task"}}, added)["forward_transfer"] is None


def test_a_stored_value_is_not_computed_again():
    assert BUILT_IN["forgetting"].read_from({**FINISHED, "forgetting": 0.123}) == 0.123
    assert np.isnan(BUILT_IN["forgetting"].read_from({**FINISHED, "forgetting": None}))


@pytest.mark.parametrize("key", [key for key in FINISHED if key != "accuracy_matrix"])
def test_a_metric_whose_inputs_are_missing_is_nan(key):
    rest = {name: value for name, value in FINISHED.items() if name != key}
    missing = {name for name, metric in BUILT_IN.items() if np.isnan(metric.read_from(rest))}
    assert (
        missing - {"intransigence"}
        == {
            "initial_accuracy": {"forward_transfer"},
            "within_tasks": {"min_accuracy", "worst_case_accuracy", "stability_gap"},
            "data": {"forward_transfer"},
            "per_task": {"nll", "ece"},
            "seconds": {name for name in BUILT_IN if name.startswith("seconds_")},
            "importance": {"bytes"},
            "validation": {"validation_average_accuracy"},
        }[key]
    )


def test_a_mean_over_tasks_needs_the_value_of_every_task():
    results = {**FINISHED, "per_task": [{"accuracy": 0.7, "nll": 0.3, "ece": 0.1}, {"accuracy": 0.8, "nll": 0.5}]}
    assert np.isnan(BUILT_IN["ece"].read_from(results)) and BUILT_IN["nll"].read_from(results) == 0.4


def test_an_unfinished_run_has_no_metrics_of_the_whole_sequence():
    assert np.isnan(BUILT_IN["average_accuracy"].read_from({**FINISHED, "accuracy_matrix": [[0.9, 0.2], [None, None]]}))
