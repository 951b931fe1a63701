"""The formulas on small matrices computed by hand, on NumPy arrays and tensors."""

from inspect import signature

import numpy as np
import pytest
import torch

from clbench.metrics.formulas import MidTaskEvaluation, intransigence
from clbench.metrics.registry import BUILT_IN, summarize

# rows: after training the first, second and third task; columns: on these tasks
FORGETS = [[0.9, 0.2, 0.1], [0.95, 0.8, 0.3], [0.7, 0.85, 0.6]]
IMPROVES = [[0.5, 0.0, 0.0], [0.6, 0.5, 0.0], [0.7, 0.8, 0.9]]
LUCKY_BEFORE = [
    [0.9, 0.99, 0.1],
    [0.95, 0.8, 0.3],
    [0.7, 0.75, 0.6],
]  # R[0][1] is the best accuracy on its task, before training on it
INITIAL = [0.1, 0.1, 0.15]


@pytest.mark.parametrize(
    "make", [np.array, lambda rows: torch.tensor(rows, dtype=torch.double)], ids=["numpy", "torch"]
)
@pytest.mark.parametrize(
    ("rows", "name", "expected"),
    [
        (FORGETS, "average_accuracy", (0.7 + 0.85 + 0.6) / 3),
        (FORGETS, "incremental_accuracy", (0.9 + (0.95 + 0.8) / 2 + (0.7 + 0.85 + 0.6) / 3) / 3),
        (FORGETS, "learning_accuracy", (0.9 + 0.8 + 0.6) / 3),
        (FORGETS, "forgetting", ((0.95 - 0.7) + (0.8 - 0.85)) / 2),  # the last row is excluded from the maxima
        (FORGETS, "backward_transfer", ((0.7 - 0.9) + (0.85 - 0.8)) / 2),
        (FORGETS, "forward_transfer", ((0.2 - 0.1) + (0.3 - 0.15)) / 2),
        (FORGETS, "min_accuracy", (0.7 + 0.85) / 2),  # the row of the task itself is excluded
        (FORGETS, "worst_case_accuracy", 0.6 / 3 + 2 / 3 * (0.7 + 0.85) / 2),
        (IMPROVES, "average_accuracy", 0.8),
        (IMPROVES, "incremental_accuracy", (0.5 + 0.55 + 0.8) / 3),
        (IMPROVES, "learning_accuracy", 1.9 / 3),
        (IMPROVES, "forgetting", ((0.6 - 0.7) + (0.5 - 0.8)) / 2),  # negative
        (IMPROVES, "backward_transfer", (0.2 + 0.3) / 2),
        (IMPROVES, "forward_transfer", ((0.0 - 0.1) + (0.0 - 0.15)) / 2),
        (IMPROVES, "min_accuracy", (0.6 + 0.8) / 2),
        (LUCKY_BEFORE, "forgetting", ((0.95 - 0.7) + (0.8 - 0.75)) / 2),  # only rows from j on, so 0.99 is excluded
        (LUCKY_BEFORE, "forward_transfer", ((0.99 - 0.1) + (0.3 - 0.15)) / 2),
    ],
)
def test_a_metric_is_what_its_formula_gives_by_hand(make, rows, name, expected):
    given = {"matrix": make(rows), "initial": make(INITIAL), "mid_task": []}
    function = BUILT_IN[name].function
    value = function(**{parameter: given[parameter] for parameter in signature(function).parameters})
    assert type(value) is float
    assert value == pytest.approx(expected, abs=1e-12)
    assert summarize(BUILT_IN, make(rows), make(INITIAL), shares_outputs=True)[name] == pytest.approx(value, abs=1e-12)


def test_intransigence_is_positive_if_the_reference_is_better():
    reference, run = np.diag([0.9, 0.8, 0.7]), np.array(FORGETS)
    assert intransigence(run, reference) == pytest.approx(((0.9 - 0.9) + (0.8 - 0.8) + (0.7 - 0.6)) / 3)


def test_one_task_has_accuracies_and_no_comparisons():
    found = summarize(BUILT_IN, [[0.75]], [0.5], shares_outputs=True)
    accuracies = {"average_accuracy", "incremental_accuracy", "learning_accuracy", "worst_case_accuracy"}
    assert {name for name, value in found.items() if value is not None} == accuracies
    assert {found[name] for name in accuracies} == {0.75}


def test_evaluations_inside_tasks_lower_the_worst_case():
    """They count for the worst-case accuracy and for the stability gap."""
    inside = [
        MidTaskEvaluation(0, 5, [0.2, 0.1]),  # excluded, because the first task is still in training
        MidTaskEvaluation(1, 5, [0.5, 0.3]),
        MidTaskEvaluation(1, 10, [0.6, 0.6]),
    ]
    found = summarize(BUILT_IN, [[0.9, 0.1], [0.8, 0.7]], mid_task=inside)
    assert found["min_accuracy"] == pytest.approx(0.5)
    assert found["worst_case_accuracy"] == pytest.approx(0.7 / 2 + 0.5 / 2)
    assert found["stability_gap"] == pytest.approx(0.9 - 0.5)


@pytest.mark.parametrize(("initial", "shares_outputs"), [(None, True), (INITIAL, False)])
def test_forward_transfer_can_be_none(initial, shares_outputs):
    """It is None without an initial accuracy and where the head of a later task is untrained."""
    found = summarize(BUILT_IN, FORGETS, initial, shares_outputs=shares_outputs)
    assert found["forward_transfer"] is None
    assert found["backward_transfer"] == pytest.approx(-0.075)


def test_all_metrics_are_none_until_every_task_is_learned():
    found = summarize(BUILT_IN, [[0.9, 0.1], [np.nan, np.nan]], [0.1, 0.1], shares_outputs=True)
    assert found.keys() == {name for name, metric in BUILT_IN.items() if metric.function is not None}
    assert set(found.values()) == {None}
