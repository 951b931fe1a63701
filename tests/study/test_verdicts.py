"""Verdicts on numbers, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan, sqrt
from pathlib import Path

import pytest

from clbench.study.definition import Claim, Published
from clbench.study.plan import (
    read_score,
)
from clbench.study.verdict import beats, better, compare, reached, share, summary
from clbench.study.verify import verdict_on

ROOT = Path(__file__).resolve().parents[2]


def test_the_standard_error_is_the_deviation_over_the_root_of_n():
    """The deviation is the sample standard deviation, with n - 1 degrees of freedom."""
    ours = summary([0.90, 0.92, 0.94])
    assert ours.mean == pytest.approx(0.92)
    assert ours.sd == pytest.approx(0.02)
    assert ours.se == pytest.approx(0.02 / sqrt(3))
    assert ours.interval == pytest.approx(4.302653 * ours.se)  # t at .975 with 2 degrees of freedom


@pytest.mark.parametrize(
    ("theirs", "verdict"), [(0.94, "match"), (0.95, "differs"), (0.90, "match"), (0.89, "differs")]
)
def test_a_mean_matches_within_twice_the_joint_standard_error(theirs, verdict):
    found = compare(summary([0.90, 0.92, 0.94]), Published(theirs, n=30, se=0.005))
    assert found.difference == pytest.approx(0.92 - theirs)
    assert found.tolerance == pytest.approx(0.0251661, abs=1e-7)  # 2 sqrt(0.0004/3 + 0.000025)
    assert found.verdict == verdict


@pytest.mark.parametrize(("theirs", "verdict"), [(0.959, "match"), (0.961, "differs")])
def test_a_single_run_matches_within_two_standard_deviations(theirs, verdict):
    """The deviation is that of our runs."""
    found = compare(summary([0.90, 0.92, 0.94]), Published(theirs, n=1))
    assert found.tolerance == pytest.approx(0.04)
    assert found.verdict == verdict


def test_one_run_of_ours_gives_no_verdict():
    found = compare(summary([0.9]), Published(0.9, n=1))
    assert isnan(found.tolerance)
    assert found.verdict == "undecided"


def test_a_claim_on_seeds_counts_those_that_reach_the_value():
    claim = Claim("", "row", "metric", reaches=1.0, on_at_least=2)
    assert reached(claim, [1.0, 0.75, 1.0]) == (True, "2 of 3 seeds")
    assert not reached(claim, [1.0, 0.75, 0.75])[0]
    assert not reached(Claim("", "row", "metric", reaches=1.0, on_at_most=0), [0.5, 1.0])[0]


def test_a_lower_value_reaches_that_of_a_claim_if_it_is_better():
    claim = Claim("", "a", "m", reaches=0.5, on_at_least=2)
    assert reached(claim, [0.4, 0.5, 0.6], sign=-1) == (True, "2 of 3 seeds")
    assert not reached(claim, [0.6, 0.7, 0.4], sign=-1)[0]


def test_a_claim_on_seeds_compares_equal_seeds():
    claim = Claim("", "a", "m", beats="b", on_at_least=2)
    assert better(claim, [0.5, 0.7, 0.2], [0.4, 0.6, 0.3]) == (True, "2 of 3 seeds")
    assert not better(replace(claim, on_at_least=3), [0.5, 0.7, 0.2], [0.4, 0.6, 0.3])[0]


@pytest.mark.parametrize(
    ("quality", "key", "score"),
    [
        ({"name": "bits_per_byte", "direction": "lower"}, "average_quality", -2.5),
        ({"name": "mean_iou", "direction": "higher"}, "average_quality", 2.5),
        ({"name": "mean_iou", "direction": "higher"}, "forgetting", -2.5),
    ],
)
def test_the_score_of_a_run_is_higher_if_it_is_better(quality, key, score):
    assert read_score({"quality": quality, key: 2.5}, key) == score
    assert read_score({"diverged": "task 1"}, key) == -inf


def test_on_other_data_values_agree_within_two_standard_errors():
    """Text that comes with Python differs between versions; otherwise the difference is at most .005 as well."""
    committed = [2.0, 2.1, 2.2]  # standard error .0577
    assert verdict_on(2.0, 2.1, committed) == "differs"
    assert verdict_on(2.0, 2.1, committed, tolerance=inf) == "agrees"
    assert verdict_on(2.0, 2.2, committed, tolerance=inf) == "differs"


def test_one_row_beats_another_by_standard_errors():
    ours, other = (
        summary([0.90, 0.92, 0.94]),
        summary([0.86, 0.88, 0.90]),
    )  # se of the difference: 0.02 sqrt(2/3) = 0.0163
    assert beats(Claim("", "a", "m", beats="b", standard_errors=2.0), ours, other)[0]
    assert not beats(Claim("", "a", "m", beats="b", standard_errors=3.0), ours, other)[0]
    assert not beats(Claim("", "a", "m", beats="b"), other, ours)[0]


def test_a_share_is_the_mean_over_seeds_of_the_ratio_of_two_rows():
    claim = Claim("", "a", "m", share_of="b", at_most=0.5)
    holds, measured = share(claim, [1.0, 2.0], [4.0, 4.0])
    assert holds
    assert measured == "0.3750, standard error 0.1250"
    assert not share(claim, [3.0, 2.0], [4.0, 4.0])[0]
    assert share(claim, [1.0, 2.0], [0.0, 4.0]) == (False, "undefined: b is 0 for a seed")
