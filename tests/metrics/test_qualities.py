"""Metrics of runs whose matrix contains another quality than accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.metrics.extra import RESERVED, make_metric
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.quality import ACCURACY, QUALITIES
from clbench.metrics.registry import BUILT_IN, add_metrics, records_of, summarize

BITS, IOU, MSE = (QUALITIES[name] for name in ("bits_per_byte", "mean_iou", "mse"))
R = [[2.0, 8.0], [3.0, 2.5]]
"""Bits per byte: task 1 became worse by 1 while task 2 was learned."""

B = [8.0, 9.0]
INSIDE = [MidTaskEvaluation(task=1, step=10, accuracy=[3.5, 4.0])]
SUMMARY = {
    "average_quality": 2.75,
    "incremental_quality": (2.0 + 2.75) / 2,
    "learning_quality": 2.25,
    "forgetting": 1.0,
    "backward_transfer": -1.0,
    "forward_transfer": 1.0,
    "min_quality": 3.5,
    "worst_case_quality": 2.5 / 2 + 3.5 / 2,
    "stability_gap": 1.5,
}
RESULTS = {
    "quality": BITS.describe(),
    "quality_matrix": R,
    "initial_quality": B,
    "per_task": [{"quality": 3.0}, {"quality": 2.5}],
    "within_tasks": [{"task": 1, "step": 10, "quality": [3.5, 4.0]}],
    "validation": {"quality_matrix": [[2.0, 8.0], [4.0, 3.0]], "average_quality": 3.5},
    "data": {"scenario": "domain"},
}


def matrices(tasks):
    row = st.lists(st.floats(0, 1), min_size=tasks, max_size=tasks)
    return st.lists(row, min_size=tasks, max_size=tasks)


@st.composite
def evaluations(draw):
    """Draw R, b and one evaluation during the last task, with values in [0, 1]."""
    r = draw(matrices(draw(st.integers(1, 4))))
    b, inside = (draw(st.lists(st.floats(0, 1), min_size=len(r), max_size=len(r))) for _ in range(2))
    return np.array(r), np.array(b), [MidTaskEvaluation(len(r) - 1, 1, inside)]


def test_forgetting_is_positive_if_bits_per_byte_rose():
    assert summarize(BUILT_IN, R, B, INSIDE, shares_outputs=True, quality=BITS) == pytest.approx(SUMMARY)


@given(evaluations())
def test_metrics_of_mse_are_those_of_the_negated_matrix(drawn):
    """Differences are equal, and values on the scale of R have the opposite sign."""
    r, b, inside = drawn
    found = summarize(BUILT_IN, r, b, inside, True, MSE)
    negated = [each._replace(accuracy=[-a for a in each.accuracy]) for each in inside]
    expected = summarize(BUILT_IN, -r, -b, negated, True)
    for name, value in expected.items():
        sign = -1 if BUILT_IN[name].is_quality else 1
        assert found[MSE.key(name)] == (None if value is None else sign * value), name


@given(evaluations())
def test_a_higher_better_quality_has_the_numbers_of_accuracy(drawn):
    expected = summarize(BUILT_IN, *drawn, shares_outputs=True)
    assert summarize(BUILT_IN, *drawn, True, IOU) == {IOU.key(name): value for name, value in expected.items()}


def test_metrics_are_read_by_the_keys_of_the_quality_or_computed():
    found = {name: metric.read_from(RESULTS) for name, metric in BUILT_IN.items()}
    assert {BITS.key(name): found[name] for name in found if BITS.key(name) in SUMMARY} == pytest.approx(SUMMARY)
    assert found["validation_average_accuracy"] == 3.5
    assert np.isnan(found["nll"]) and np.isnan(found["ece"])
    assert BUILT_IN["average_accuracy"].read_from({**RESULTS, "average_quality": 1.5}) == 1.5


def test_missing_metrics_are_added_under_the_keys_of_the_quality():
    found = add_metrics({**RESULTS, "average_quality": 1.5}, BUILT_IN)
    assert {key: found[key] for key in SUMMARY} == pytest.approx({**SUMMARY, "average_quality": 1.5})
    assert found["validation"]["min_quality"] == 4.0 and found["validation"]["forgetting"] == 2.0
    assert not [key for key in found if "accuracy" in key]


def test_user_functions_get_values_of_which_higher_is_better():
    def worst_task(matrix, initial, mid_task):
        return matrix[-1].min() if initial is None else initial.min() + mid_task[0].accuracy[0]

    metrics = {"worst_task": make_metric(worst_task, "here")}
    assert summarize(metrics, R, quality=BITS) == {"worst_task": -3.0}
    assert summarize(metrics, R, B, INSIDE, quality=BITS) == {"worst_task": -9.0 - 3.5}


def test_a_record_has_the_words_and_the_direction_of_the_quality():
    records = records_of(BITS, BUILT_IN)
    better = {name for name, metric in records.items() if metric.higher_is_better}
    assert better == {"backward_transfer", "forward_transfer"}
    assert records["average_accuracy"].heading == "average bits per byte"
    assert records["min_accuracy"].heading == "max bits per byte"
    assert records["forgetting"].unit == "bits per byte"
    assert records["worst_case_accuracy"].formula.endswith("min_quality, computed on -R and -b and negated")
    assert records_of(ACCURACY, BUILT_IN) == BUILT_IN
    assert records_of(IOU, BUILT_IN)["average_accuracy"].higher_is_better


def test_a_record_of_the_user_keeps_its_words():
    def best_accuracy(matrix):
        """highest accuracy"""
        return matrix.max()

    metrics = {"best_accuracy": make_metric(best_accuracy, "here")}
    assert records_of(BITS, metrics) == metrics
    assert summarize(metrics, R, quality=BITS) == {"best_accuracy": -2.0}


def test_keys_of_other_qualities_are_reserved():
    assert {BITS.key(name) for name in BUILT_IN} - BUILT_IN.keys() <= RESERVED
