import pytest

from clbench.errors import ConfigError
from clbench.runs.objective import objective

FINISHED = {
    "accuracy_matrix": [[0.9, 0.2], [0.7, 0.8]],
    "average_accuracy": 0.75,
    "forgetting": None,
    "status": "complete",
    "validation": {"accuracy_matrix": [[0.8, 0.2], [0.6, 0.8]], "average_accuracy": 0.7},
    "seconds": {"total": 5.0},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("average_accuracy", 0.75),
        ("validation.average_accuracy", 0.7),
        ("seconds.total", 5.0),
        ("forgetting", None),
        ("incremental_accuracy", (0.9 + 0.75) / 2),  # metrics.json of the run does not contain it
        ("validation.incremental_accuracy", (0.8 + 0.7) / 2),
        ("stability_gap", None),  # its inputs are missing
    ],
)
def test_an_objective_is_read_from_metrics_json_or_computed(key, value):
    """A value that is missing in metrics.json is computed from the accuracies in it."""
    assert objective(FINISHED, key) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize("without", [{"validation": None}, {}])
def test_without_validation_data_it_is_that_on_test_data(without):
    rest = {key: value for key, value in FINISHED.items() if key != "validation"}
    assert objective(rest | without, "validation.average_accuracy") == 0.75


@pytest.mark.parametrize("key", ["nope", "status", "seconds.nope", "seconds", "intransigence", "nope.average_accuracy"])
def test_an_objective_that_is_no_number_is_an_error(key):
    with pytest.raises(ConfigError, match=f"objective={key}: expected the key of a number in metrics.json"):
        objective(FINISHED, key)


def worst_task(matrix):
    """lowest accuracy on a task at the end"""
    return matrix[-1].min()


def test_a_user_metric_missing_in_a_finished_run_is_computed():
    extra = ["tests.runs.test_objective.worst_task"]
    assert objective(FINISHED, "worst_task", extra) == 0.7
    assert objective(FINISHED, "validation.worst_task", extra) == 0.6
