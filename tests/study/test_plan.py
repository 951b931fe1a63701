"""The runs that a study needs, as a function of the finished ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from clbench.errors import ConfigError
from clbench.study.parse import parsed
from clbench.study.plan import (
    Cell,
    at_an_edge,
    decisive_runs,
    final_runs,
    needed_runs,
    number_of_cells,
    read_number,
    search,
    text_of,
)
from tests.study.tiny import GRID, TINY, study_of

ROOT = Path(__file__).resolve().parents[2]


def results_of(scores, seed=7):
    """Return metrics.json of trial runs by lam."""
    overrides = ("strategy=ewc", "data.tasks=3")
    return {
        Cell((overrides[0], f"lam={lam}", overrides[1]), seed): {"average_accuracy": score}
        for lam, score in scores.items()
    }


def test_final_runs_at_the_best_point_follow_the_trials():
    row = study_of().rows[0]
    assert needed_runs(row, {}) == list(results_of({"1": 0, "10": 0, "100": 0}))
    found = results_of({"1": 0.5, "10": 0.9, "100": 0.7})
    assert needed_runs(row, found)[3:] == [Cell(("strategy=ewc", "lam=10"), 0), Cell(("strategy=ewc", "lam=10"), 1)]


def test_a_best_point_at_an_edge_extends_the_grid():
    """The grid grows until the best point is inside it."""
    row = study_of().rows[0]
    found = results_of({"1": 0.5, "10": 0.6, "100": 0.7})
    assert needed_runs(row, found)[-1] == Cell(("strategy=ewc", "lam=1000", "data.tasks=3"), 7)
    found |= results_of({"1000": 0.6})
    assert search(row, row.select[0], found)[1] == {"lam": 100.0}
    below = results_of({"1": 0.9, "10": 0.6, "100": 0.5})
    assert Cell(("strategy=ewc", "lam=0.1", "data.tasks=3"), 7) in needed_runs(row, below)
    in_thirds = {**GRID["select"][0], "extend": {"lam": 3}}
    row = study_of(grid={"lam": [0.03, 0.1]}, select=[in_thirds]).rows[0]
    assert needed_runs(row, results_of({"0.03": 0.5, "0.1": 0.6}))[-1].overrides[1] == "lam=0.3", (
        "not 0.30000000000000004"
    )


def test_equal_values_do_not_extend_the_grid():
    """A lam of 1 that is as good as 10 is no reason to try .1, and no factor moves a lam of 0."""
    for values, scores in (((1.0, 10.0, 100.0), (0.5, 0.5, 0.4)), ((0.0, 1.0, 10.0), (0.6, 0.5, 0.4))):
        row = study_of(grid={"lam": values}).rows[0]
        cells = [cell for _, cells in search(row, row.select[0], {})[0] for cell in cells]
        results = {cell: {"average_accuracy": score} for cell, score in zip(cells, scores, strict=True)}
        trials, best = search(row, row.select[0], results)
        assert [point["lam"] for point, _ in trials] == list(values)
        assert best == {"lam": values[0]}


@pytest.mark.parametrize(("value", "text"), [(None, "null"), ((1, 2.5), "[1,2.5]"), (True, "true"), (1e3, "1000")])
def test_a_value_of_a_grid_is_written_as_an_override(value, text):
    assert text_of(value) == text


def test_a_second_selection_rule_may_have_its_own_seeds():
    second = {"by": "average_accuracy", "seeds": [0], "final": [0], "extend": {}}
    row = study_of(
        seeds=[0, 1, 2],
        grid={"lam": [1, 10]},
        select=[{"by": "average_accuracy", "on": "test", "seeds": [0], "extend": {}}, second],
    ).rows[0]
    found = {
        Cell(("strategy=ewc", f"lam={lam}"), 0): {"average_accuracy": acc, "validation": {"average_accuracy": 1 - acc}}
        for lam, acc in ((1, 0.9), (10, 0.8))
    }
    judged, reported = (final_runs(row, search(row, rule, found)[1], rule) for rule in row.select)
    assert [cell.arguments for cell in judged] == [("strategy=ewc", "lam=1", f"seed={seed}") for seed in (0, 1, 2)]
    assert [cell.arguments for cell in reported] == [("strategy=ewc", "lam=10", "seed=0")]
    assert set(needed_runs(row, found)) == {*judged, *reported}
    with pytest.raises(ConfigError, match="final is not allowed in the first rule"):
        study_of(select=[{**GRID["select"][0], "final": [0]}])


def test_a_diverged_trial_is_the_worst_and_is_reported():
    row = study_of().rows[0]
    found = results_of({"1": 0.5, "10": 0.4, "100": 0.3}) | results_of({"0.1": 0.2})
    (cell,) = results_of({"10": 0})
    found[cell] = {"diverged": "weights became non-finite"}
    assert search(row, row.select[0], found)[1] == {"lam": 1.0}
    assert decisive_runs(row, found) == []  # another point can replace it
    found |= {
        Cell(("strategy=ewc", "lam=1"), 1): {"diverged": "weights became non-finite"},
        **results_of({"1000": 0.1}),
    }
    assert search(row, row.select[0], found)[1] == {"lam": 100.0}, "a final run diverged: the next best is taken"
    for cell in found:
        found[cell] = {"diverged": "weights became non-finite"}
    assert needed_runs(row, found)[0].overrides[1] == "lam=0.01", "all diverged: the grid is extended below"
    fixed = {**GRID["select"][0], "extend": {}}
    with pytest.raises(ConfigError, match="row: runs diverged at all 3 points of the grid"):
        search(row, study_of(select=[fixed]).rows[0].select[0], found)


def test_a_row_like_another_uses_the_point_chosen_for_that_row():
    ablation = {"name": "without", "like": "row", "overrides": ["strategy=mas"]}
    row = parsed("tiny", {**TINY, "rows": [GRID, ablation]}).rows[1]
    assert needed_runs(row, {}) == list(results_of({"1": 0, "10": 0, "100": 0}))  # the trials of that row
    found = results_of({"1": 0.5, "10": 0.9, "100": 0.7})
    assert needed_runs(row, found)[3:] == [Cell(("strategy=mas", "lam=10"), 0), Cell(("strategy=mas", "lam=10"), 1)]
    assert decisive_runs(row, found) == needed_runs(row, found)[3:]  # no other point can replace it


def test_a_row_like_another_keeps_the_options_it_sets_itself():
    ablation = {"name": "without", "like": "row", "overrides": ["strategy=mas", "lam=0"]}
    row = parsed("tiny", {**TINY, "rows": [GRID, ablation]}).rows[1]
    found = results_of({"1": 0.5, "10": 0.9, "100": 0.7})
    assert needed_runs(row, found)[3:] == [Cell(("strategy=mas", "lam=0"), 0), Cell(("strategy=mas", "lam=0"), 1)]


def test_a_row_like_another_has_no_grid_and_the_other_has_one():
    plain = {"name": "plain", "overrides": ["strategy=ewc"]}
    for rows in ([GRID, {**GRID, "name": "b", "like": "row"}], [plain, {**plain, "name": "b", "like": "plain"}]):
        with pytest.raises(ConfigError, match="expected a grid in that row"):
            parsed("tiny", {**TINY, "rows": rows})


def test_a_best_point_at_an_edge_is_reported():
    """The grid of this row is not extended."""
    row = study_of(select=[{"by": "average_accuracy", "on": "test", "extend": {}}]).rows[0]
    trials, _ = search(row, row.select[0], {})
    assert at_an_edge(row, trials, {"lam": 100.0}) == ["lam"]
    assert at_an_edge(row, trials, {"lam": 10.0}) == []


def test_final_runs_that_the_trials_have_made_are_not_repeated():
    row = study_of(select=[{"by": "average_accuracy", "on": "test", "extend": {}}]).rows[0]
    found = {cell: {"average_accuracy": 0.5} for cell in needed_runs(row, {})}
    assert len(found) == 6
    assert set(needed_runs(row, found)) == set(found)


def test_the_number_of_runs_counts_trials_and_final_runs():
    assert number_of_cells(study_of()) == 3 + 2
    assert number_of_cells(study_of(select=[{"by": "average_accuracy", "on": "test", "extend": {}}])) == 6


def test_a_metric_follows_a_dotted_key_through_lists():
    metrics = {"accuracy_matrix": [[0.9, None], [0.7, 0.8]], "validation": None}
    assert read_number(metrics, "accuracy_matrix.-1.0") == 0.7
    with pytest.raises(
        ConfigError, match="validation.average_accuracy is not in metrics.json, which has no average_accuracy"
    ):
        read_number(metrics, "validation.average_accuracy")
    with pytest.raises(ConfigError, match=r"accuracy_matrix.0.1: expected a number in metrics.json, got null"):
        read_number(metrics, "accuracy_matrix.0.1")
