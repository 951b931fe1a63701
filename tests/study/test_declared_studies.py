"""The yaml of a study, its forms, and every study of this project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clbench.errors import ConfigError
from clbench.study.definition import Published
from clbench.study.forms import full, quick, usual
from clbench.study.parse import load, names, parsed
from clbench.study.plan import (
    needed_runs,
)
from clbench.sweep.open import open_sweeper
from tests.study.tiny import GRID, TINY, study_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"published": {"speed": {"value": 1, "n": 1}}}, "unknown metric speed. Use one of accuracy, first"),
        ({"published": {"accuracy": {"value": 1, "n": 30}}}, "expected n: 1, or n > 1 with se"),
        ({"publish": {}}, "row row: unknown key publish"),
        ({"grid": {}}, "expected grid and select together"),
        ({"grid": {"lam": 10}}, "row row: grid: expected a list of different values per key, got {'lam': 10}"),
        ({"grid": {"lam": [1, 1.0]}}, "row row: grid: expected a list of different values per key"),
        ({"grid": {"seed": [0, 1]}}, "seed=: expected option=value, and the seeds under seeds"),
        ({"overrides": ["++seed=1"]}, "seed=1: expected option=value, and the seeds under seeds"),
        ({"select": {"by": "average_accuracy", "overrides": ["seed=1"]}}, "seed=1: expected option=value"),
        ({"seeds": [0, 0]}, "row row: seeds: expected a list of different integers >= 0, got .0, 0."),
        ({"seeds": [-1]}, "row row: seeds: expected a list of different integers >= 0"),
        ({"name": "a\nb"}, "^tiny: row .a.*b.: name: expected one line of text.$"),
        ({"published": {"accuracy": {"value": 1, "sd": "big", "n": 9}}}, "accuracy: se: expected a number, got big"),
        ({"published": {"accuracy": {"value": 1, "sd": 1, "n": None}}}, "accuracy: n: expected a positive number"),
        ({"published": {"accuracy": {"value": 1, "sd": 1, "se": 1, "n": 9}}}, "expected n: 1, or n > 1 with se"),
        ({"published": {"accuracy": {"value": 1, "se": -1, "n": 9}}}, "expected n: 1, or n > 1 with se"),
        ({"published": {"accuracy": float("nan")}}, "accuracy: value: expected a number, got nan"),
        ({"curve": {"accuracy": None}}, "curve: expected a list of pairs of numbers per metric"),
        ({"curve": {"accuracy": [["a", 1]]}}, "curve: expected a list of pairs of numbers per metric"),
        ({"curve": {"accuracy": [[1, 1]]}, "grid": {"lam": [1], "lr": [1]}}, "curve: expected a grid of a single key"),
        ({"overrides": "strategy=ewc"}, "row row: overrides: expected a list of texts, got strategy=ewc"),
        ({"overrides": ["seed=1"]}, "seed=1: expected option=value, and the seeds under seeds"),
        ({"seeds": ["a"]}, "row row: seeds: expected a list of different integers >= 0"),
        ({"select": {"by": "average_accuracy", "on": "train"}}, "select: on=train: expected validation or test"),
        ({"select": {"on": "test"}}, "row row: select: missing key by"),
        ({"select": {"by": "average_accuracy", "extend": {"lr": 3}}}, "extend lr: expected a key of the grid"),
        ({"select": {"by": "average_accuracy", "extend": {"lam": 1}}}, "expected a factor above 1 per key"),
        ({"baseline": "other"}, "tiny: unknown row other. Use one of row"),
        ({"curve": {"accuracy": [1.0]}}, "curve: expected a list of pairs of numbers per metric"),
    ],
)
def test_a_study_that_has_no_meaning_is_refused(row, message):
    with pytest.raises(ConfigError, match=message):
        study_of(**row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "tiny: missing key title"),
        ({"title": "a", "seeds": [0]}, "tiny: missing key rows|expected at least one row"),
        ({"title": "a", "seeds": [], "rows": [GRID]}, "expected at least one row and one seed"),
        ({"title": "a", "seeds": 0, "rows": [GRID]}, "tiny: seeds: expected a list of different integers >= 0, got 0"),
        ({"title": "a", "seeds": [0], "rows": GRID}, "tiny: rows: expected a list"),
        ({"title": "a", "seeds": [0], "rows": [GRID, GRID]}, "expected different names of rows"),
        ({"title": "a", "seeds": [0], "rows": [GRID], "claims": [{"text": "a"}]}, "tiny: claim: missing key row"),
        ({"title": "a", "seeds": [0], "rows": ["ewc"]}, "tiny: row ewc: expected keys with values, got ewc"),
        ({"title": "a", "seeds": [0], "rows": [GRID], "quick": {"row": []}}, "tiny: quick: unknown key row"),
    ],
)
def test_a_file_with_a_mistake_gets_one_clear_error(content, message):
    with pytest.raises(ConfigError, match=message):
        parsed("tiny", content)


PAIR = [{"name": "a", "overrides": ["lam=1"]}, {"name": "b", "overrides": ["lam=2"], "seeds": [1, 2]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "other"}, "tiny: unknown key name. The name of a study is that of its file"),
        ({"quick": None}, "tiny: quick: expected keys with values, got nothing"),
        ({"quick": {"seeds": []}}, "tiny: quick: expected at least one seed"),
        ({"quick": {"rows": ["c"]}}, "tiny: unknown row c. Use one of a, b"),
        ({"full": {"grid": {"lam": [1]}}}, "tiny: full: grid: no row has lam in its grid"),
        ({"metrics": []}, "tiny: metrics: expected a list of keys of metrics.json, or name: key"),
        ({"metrics": {1: "forgetting"}}, "tiny: metrics: expected a list of keys of metrics.json"),
        ({"metrics": {"runs": "forgetting"}}, "metric runs: the table has a column of this name"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        parsed("tiny", {"title": "a", "seeds": [0, 1], "rows": PAIR, **content})


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({}, "expected beats .*, got none of them"),
        ({"beats": "b", "reaches": 1, "on_at_least": 1}, "got beats, on_at_least, reaches"),
        ({"beats": "b", "on_at_most": 1}, "got beats, on_at_most"),
        ({"beats": "a"}, "expected another row than a"),
        ({"beats": "b", "on_at_least": 1}, "expected the same seeds in both rows"),
        ({"share_of": "b", "at_most": 1}, "expected the same seeds in both rows"),
        ({"reaches": 1, "on_at_least": 3}, "on_at_least=3: expected at most 2, the number of seeds"),
        ({"reaches": 1, "on_at_least": "two"}, "on_at_least: expected a number of seeds, got two"),
        ({"beats": "one"}, "expected at least two seeds in both rows, for a standard error"),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused(claim, message):
    rows = [*PAIR, {"name": "one", "overrides": ["lam=3"], "seeds": [0]}]
    claim = {"text": "t", "row": "a", "metric": "forgetting", **claim}
    with pytest.raises(ConfigError, match=message):
        parsed("tiny", {"title": "a", "seeds": [0, 1], "rows": rows, "claims": [claim]})


PARTS = {
    **TINY,
    "parts": {"a": ["scenario=task"], "b": ["scenario=class"]},
    "rows": [
        {**GRID, "name": "ewc", "baseline": "finetune"},
        {"name": "finetune", "parts": ["b"], "overrides": ["strategy=finetune"]},
    ],
}


def test_rows_are_repeated_in_the_parts_of_a_table():
    study = parsed("tiny", {**PARTS, "rows": [PARTS["rows"][1], {**GRID, "name": "ewc"}]})
    assert [(row.name, row.part, row.overrides) for row in study.rows] == [
        ("b, finetune", "b", ("scenario=class", "strategy=finetune")),
        ("a, ewc", "a", ("scenario=task", "strategy=ewc")),
        ("b, ewc", "b", ("scenario=class", "strategy=ewc")),
    ]
    with pytest.raises(ConfigError, match="tiny: unknown row a, finetune"):
        parsed("tiny", PARTS)  # the baseline of a row is in the same part


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"parts": {"a": "scenario=task"}}, "tiny: parts: expected a list of overrides per part"),
        ({"parts": {}}, "tiny: parts: expected a list of overrides per part"),
        ({"parts": {"a": [], "c": []}}, "row finetune: parts: expected a list of a, c, got .'b'."),
        ({"parts": None}, "row finetune: unknown key parts. Add parts to the study and to the row"),
        ({"rows": [{**GRID, "part": "a"}]}, "row row: unknown key part. Add parts to the study"),
    ],
)
def test_parts_that_have_no_meaning_are_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        parsed("tiny", {**PARTS, **content})


def test_a_short_file_is_a_study():
    """All rows use the rules of the study, metrics have defaults, and the grid of lam is extended by its last ratio."""
    content = {"title": "a", "seeds": [0, 1], "select": {"by": "average_accuracy", True: "validation"}}
    grids = {"lam": [1, 10, 30]}, {"lr": [0.1, 0.2]}, {}
    rows = [{"name": str(k), "overrides": ["strategy=ewc"], "grid": grid} for k, grid in enumerate(grids)]
    study = parsed("short", {**content, "rows": rows})
    assert list(study.metrics) == ["average_accuracy", "forgetting"]
    assert [[rule.key for rule in row.select] for row in study.rows] == [["validation.average_accuracy"]] * 2 + [[]]
    assert [rule.extend for row in study.rows for rule in row.select] == [{"lam": 3}, {}]
    assert {rule.seeds for row in study.rows for rule in row.select} == {(0, 1)}


def test_a_file_is_read_and_a_wrong_name_is_explained(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("title: a\nseeds: [0]\nrows: [{name: b, overrides: [lam=1], published: {forgetting: 0.1}}]\n")
    study = load(str(file))
    assert (study.name, study.rows[0].published["forgetting"]) == ("mine", Published(0.1, n=1))
    file.write_text("title: [")
    with pytest.raises(ConfigError, match="expected a yaml file, got: "):
        load(str(file))
    with pytest.raises(
        ConfigError, match=r"seed_ma: expected the name of a study or a yaml file. Did you mean seed_mas?"
    ):
        load("seed_ma")


def test_a_published_deviation_becomes_a_standard_error():
    row = study_of(published={"accuracy": {"value": 0.9, "sd": 0.02, "n": 16}}).rows[0]
    assert row.published["accuracy"].se == pytest.approx(0.005)


def test_the_quick_form_has_fewer_seeds_and_the_ends_of_the_grid():
    """It also has overrides of its own."""
    row = quick(study_of()).rows[0]
    assert row.grid == {"lam": (1.0, 100.0)}
    assert {cell.seed for cell in needed_runs(row, {})} == {0}
    assert all("epochs=1" in cell.overrides for cell in needed_runs(row, {}))


def two_forms():
    row = {**GRID, "curve": {"accuracy": [[1, 0.1], [3, 0.2]]}, "published": {"accuracy": {"value": 0.9, "n": 1}}}
    forms = {"reduced": ["steps=9"], "full": {"seconds": 60, "seeds": [0, 1], "grid": {"lam": [1, 3, 9, 27]}}}
    trials = [{"by": "average_accuracy", "seeds": [7], "extend": {"lam": 10}}, {**GRID["select"][0]}]
    return parsed("tiny", {**TINY, **forms, "rows": [{**row, "select": trials}]})


def test_the_usual_form_is_not_compared_with_published_numbers():
    """It is a reduced form of a study that has a full form."""
    row = usual(two_forms()).rows[0]
    assert all("steps=9" in cell.overrides for cell in needed_runs(row, {}))
    assert row.published == row.curve == {}
    assert usual(study_of()) == study_of()


def test_the_full_form_has_seeds_grid_and_published_numbers():
    study = full(two_forms())
    row = study.rows[0]
    assert (study.name, study.seconds) == ("tiny-full", 60)
    assert row.grid == {"lam": (1, 3, 9, 27)}
    assert [s.seeds for s in row.select] == [
        (0, 1),
        (7,),
    ]  # the rule with overrides is not published, so its seeds stay
    assert not any(s.extend for s in row.select)
    assert row.published["accuracy"].value == 0.9
    assert row.curve == {"accuracy": ((1, 0.1), (3, 0.2))}
    assert not any("steps=9" in cell.overrides for cell in needed_runs(row, {}))
    with pytest.raises(ConfigError, match="tiny has a single form"):
        full(study_of())


def test_a_reduced_form_needs_a_full_one():
    with pytest.raises(ConfigError, match="expected full together with reduced"):
        parsed("tiny", {**TINY, "rows": [GRID], "reduced": ["steps=9"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_the_ends_of_every_grid_compose_to_different_runs(name, tmp_path):
    """Both ends of every key of a study compose, and no two runs of a row are the same."""
    with open_sweeper(["launch=serial"], tmp_path, str) as sweeper:
        compose_the_ends(load(name), sweeper)


def compose_the_ends(loaded, sweeper):
    hashes = {}
    for study in [usual(loaded), quick(usual(loaded)), *([full(loaded)] if loaded.full else [])]:
        for row in study.rows:
            first = {key: values[:1] for key, values in row.grid.items()}
            ends = {key: tuple(dict.fromkeys((values[0], values[-1]))) for key, values in row.grid.items()}
            axes = [replace(row, grid={**first, key: ends[key]}) for key in row.grid] or [row]
            runs = {cell.overrides for axis in axes for cell in needed_runs(axis, {})}
            hashes |= {overrides: sweeper.plan([*overrides, "seed=0"]).hash for overrides in runs - hashes.keys()}
            assert len({hashes[overrides] for overrides in runs}) == len(runs)


@pytest.mark.parametrize("name", names())
def test_the_values_of_a_grid_are_of_one_kind_and_differ(name):  # so that all compose if the ends do
    loaded = load(name)
    for study in [loaded, *([full(loaded)] if loaded.full else [])]:
        for row in study.rows:
            for key, values in row.grid.items():
                numbers = {float(value) for value in values if is_number(value)}
                assert len(numbers) == len(values) or (not numbers and len(set(values)) == len(values)), (row.name, key)


def is_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", names())
def test_every_study_has_an_experiment_of_its_own_in_each_row(name):
    for row in load(name).rows:
        assert row.overrides[0].startswith(f"experiment={name}")
        assert (ROOT / f"conf/experiment/{row.overrides[0].partition('=')[2]}.yaml").exists()
