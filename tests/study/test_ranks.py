"""Ranks, critical difference, paired differences, and the overview of a study with parts."""

from __future__ import annotations

from statistics import fmean

import pytest
from scipy.stats import ttest_rel

from clbench.study.figure import figure
from clbench.study.overview import overview, overview_table, overview_tex, place, repeated_text
from clbench.study.ranks import all_ranks, competing, critical_difference, methods_of, paired
from clbench.study.verdict import summary

VALUES = {
    "a": {
        "finetune": {0: 0.2, 1: 0.3, 2: 0.25},
        "ewc": {0: 0.5, 1: 0.6, 2: 0.7},
        "er": {2: 0.7, 0: 0.5, 1: 0.5},
        "joint": {0: 0.9, 1: 0.9, 2: 0.9},
    },
    "b": {
        "finetune": {0: 0.2, 1: 0.3, 2: 0.2},
        "ewc": {0: 0.2, 1: 0.3, 2: 0.2},
        "er": {0: 0.8, 1: 0.7, 2: 0.6},
        "icarl": {0: 0.8, 1: 0.8, 2: 0.8},
    },
}


def row_of(part, method, values):
    cells = [
        {"seed": seed, "values": {"accuracy": value}, "config_hash": f"{seed}", "overrides": [f"strategy={method}"]}
        for seed, value in values.items()
    ]
    if method in ("er", "icarl"):
        cells[0]["overrides"].append("memory=10")
    mean, sd, n = number = summary(list(values.values()))
    return {
        "name": f"{part}, {method}",
        "part": part,
        "bytes": 1500,
        "seconds": 2.0 if method == "ewc" else 1.0,
        "selections": [
            {
                "config_hashes": [f"{seed}" for seed in values],
                "metrics": {"accuracy": {"mean": mean, "sd": sd, "n": n, "se": number.se}},
            }
        ],
        "cells": [*cells, {"seed": 0, "values": {"accuracy": -1.0}, "config_hash": "of the grid"}],
    }


def found_of(values=VALUES, **more):
    rows = [row_of(part, method, each) for part, methods in values.items() for method, each in methods.items()]
    return {"title": "T", "parts": list(values), "metrics": {"accuracy": "average_accuracy"}, "rows": rows, **more}


@pytest.mark.parametrize(
    ("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)]
)
def test_critical_differences_are_those_of_demsar_2006(methods, quantile):
    """Table 5 (a) of Demsar 2006 has the quantiles for the level .05."""
    assert critical_difference(methods, methods * (methods + 1) / 6) == pytest.approx(
        quantile, abs=1e-3
    )  # the table is truncated


def test_equal_values_share_a_rank_and_references_have_none():
    found = found_of()
    assert competing(found) == ["finetune", "ewc", "er"]  # icarl is only in b
    assert all_ranks(found) == {
        "finetune": [3, 3, 3, 2.5, 2.5, 2.5],
        "ewc": [1.5, 1, 1.5, 2.5, 2.5, 2.5],
        "er": [1.5, 2, 1.5, 1, 1, 1],
    }
    assert methods_of(found) == ["er", "ewc", "finetune", "joint", "icarl"]


def test_differences_are_paired_by_seed():
    rows = {row["name"]: row for row in found_of()["rows"]}
    ours, other = rows["a, er"], rows["a, finetune"]
    each = paired(ours, other, "accuracy")
    reference = ttest_rel([0.5, 0.5, 0.7], [0.2, 0.3, 0.25]).confidence_interval(0.95)
    assert (each.mean - each.half, each.mean + each.half) == pytest.approx(tuple(reference), rel=1e-12)
    assert each.n == 3
    assert each.sign == 1
    assert paired(rows["b, ewc"], rows["b, finetune"], "accuracy").sign == 0


def test_seeds_that_one_row_lacks_are_left_out():
    values = {**VALUES, "a": {**VALUES["a"], "er": {1: 0.5, 2: 0.7, 9: 0.1}}}
    rows = {row["name"]: row for row in found_of(values)["rows"]}
    assert paired(rows["a, er"], rows["a, ewc"], "accuracy").mean == pytest.approx(-0.05)
    assert all(len(ranks) == 2 + 3 for ranks in all_ranks(found_of(values)).values())


def test_the_overview_marks_the_best_values():
    head, lines = overview_table(found_of())
    assert head == ["method", "a", "b", "mean rank", "time", "stored"]
    table = {line[0]: line[1:] for line in lines}
    assert table["ewc"] == ["**0.600** ± 0.058", "0.233 ± 0.033", "1.9", "2.00", "1.5 kB"]
    assert table["icarl"] == ["", "**0.800** ± 0.000", "", "1.00", "1.5 kB"]
    assert table["joint"][:3] == ["0.900 ± 0.000", "", ""]
    assert r"ewc & $\mathbf{0.600} \pm 0.058$ & $0.233 \pm 0.033$ & 1.9 \\" in overview_tex(found_of())


def test_the_overview_says_what_does_not_beat_fine_tuning():
    a, b, statistics = overview(found_of())
    assert "The best without stored examples is ewc (0.600). The best with stored examples is er (0.567)." in a
    assert "No significant difference" not in a
    assert "No significant difference from it (95 % interval of the paired difference): ewc." in b
    assert "No method without stored examples is better than it." in b
    assert "6 pairs of part and seed of the rank among the 3 methods" in statistics
    assert f"differ by {critical_difference(3, 6):.1f} or more" in statistics


def test_the_own_strategy_is_compared_with_each_method():
    values = {part: {**rows, "mine": {0: 0.3, 1: 0.4, 2: 0.35}} for part, rows in VALUES.items()}
    repeated = [{"row": "a, finetune", "seed": 0, "committed": [0.2], "now": [0.2]}]
    found = found_of(values, own="mine", repeated=repeated, baseline_seconds={"a": 4.0})
    head, lines = overview_table(found)
    assert head[4:6] == ["mine minus it: a", "mine minus it: b"]
    table = {line[0]: line for line in lines}
    assert table["finetune"][4] == "+0.100 ± 0.000"
    assert table["**mine**"][4:] == ["", "", "0.25", "1.5 kB"]  # the time on the machine of the user
    assert place(found) == "place 3 of 4 by mean rank: mine"
    assert "gave exactly the committed values" in repeated_text(found)
    repeated[0]["now"] = [0.21]
    assert "The largest difference of a metric is 0.0100" in repeated_text(found)
    assert any("Repeated runs" in paragraph for paragraph in overview(found))


def test_the_figure_has_a_panel_per_part_and_one_for_the_ranks():
    found = found_of()
    axes = figure(found).axes
    assert [each.get_title() for each in axes] == ["a", "b", "mean rank, all 2 parts"]
    centres = [line.get_xdata()[0] for line in axes[-1].lines if line.get_marker() == "o"]
    assert centres == sorted(fmean(ranks) for ranks in all_ranks(found).values())
    assert [label.get_text() for label in axes[0].get_yticklabels()] == methods_of(found)
