"""Reports on runs of bits per byte, of which lower is better, and of two qualities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import clbench
from clbench.metrics.registry import BUILT_IN, records_of
from clbench.report.__main__ import main
from clbench.report.benchmark import split_benchmarks
from clbench.report.figures import draw_ranking, draw_tradeoff
from clbench.report.figures_lam import draw_lam_curves
from clbench.report.figures_tasks import draw_matrices, draw_over_tasks
from clbench.report.html_tables import lam_table, strategies_table
from clbench.report.style import assign_colours, report_style
from clbench.report.summary import select_lam, selected_rows, summarize_seeds
from clbench.report.tables import terminal_tables
from clbench.runs.read import read_runs
from tests.make_finished_runs import FINISHED_RUNS, edit
from tests.runs_of_bits import BITS, write_bits_runs

ACCURACIES = FINISHED_RUNS / "task_incremental"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return write_bits_runs(tmp_path_factory.mktemp("runs") / "sweep", data="text8")


@pytest.fixture(scope="module")
def runs(sweep) -> pd.DataFrame:
    return read_runs(sweep)


@pytest.fixture(scope="module")
def setups(runs) -> pd.DataFrame:
    return select_lam(summarize_seeds(runs), "validation")


@pytest.fixture(scope="module")
def reported(sweep, tmp_path_factory) -> Path:
    return main([str(sweep), "--output", str(tmp_path_factory.mktemp("out") / "report")])


def test_rows_of_bits_have_the_same_columns_and_no_chance(runs):
    accuracies = read_runs(ACCURACIES)
    assert set(runs.status) == {"complete"} and set(runs.quality) == {"bits_per_byte"}
    assert np.allclose(runs.average_accuracy, 8 * (1 - accuracies.average_accuracy))
    assert np.allclose(runs.forgetting, 8 * accuracies.forgetting)
    assert np.allclose(runs.intransigence.dropna(), 8 * accuracies.intransigence.dropna())
    assert runs.nll.isna().all() and all(np.isnan(chance).all() for chance in runs.chance)


def test_read_has_the_keys_of_the_quality(sweep, runs):
    public = clbench.read(sweep)
    assert list(public.average_quality) == list(runs.average_accuracy)
    assert list(public.validation_average_quality) == list(runs.validation_average_accuracy)
    assert np.array_equal(public.quality_matrix[0], runs.accuracy_matrix[0])
    assert public.average_accuracy.isna().all() and public.accuracy_matrix.isna().all()
    assert list(public.forgetting) == list(runs.forgetting)


def test_read_of_accuracies_has_no_columns_of_other_qualities():
    pd.testing.assert_frame_equal(clbench.read(ACCURACIES), read_runs(ACCURACIES))
    assert not [name for name in clbench.read(ACCURACIES) if "quality" in name and name != "quality"]


def test_the_selected_lam_has_the_lowest_validation_value(setups):
    with_lams = setups[setups.lam_count > 1]
    for _, lams in with_lams.groupby("method"):
        selected, oracle = lams[lams.selected].iloc[0], lams[lams.oracle].iloc[0]
        assert selected.validation_average_accuracy == lams.validation_average_accuracy.min()
        assert oracle.average_accuracy == lams.average_accuracy.min()
    names = ["setup", "selected", "oracle"]
    accuracies = select_lam(summarize_seeds(read_runs(ACCURACIES)), "validation")
    assert setups[names].equals(accuracies[names]), "8 (1 - a) has the order of accuracies, reversed"


def test_at_equal_values_the_smaller_lam_is_selected(setups):
    lams = setups[setups.lam_count > 1].assign(validation_average_accuracy=2.0)
    assert (select_lam(lams, "validation").query("selected").lam == lams.lam.min()).all()


def test_rows_are_sorted_from_the_lowest_value(setups):
    assert selected_rows(setups).average_accuracy.is_monotonic_increasing


def test_tables_say_bits_per_byte_and_mark_the_lowest(setups):
    rows = selected_rows(setups)
    (printed,) = terminal_tables(rows, BUILT_IN)
    assert [column.header for column in printed.columns][2] == "average bits per byte"
    table = strategies_table(rows, records_of(BITS, BUILT_IN), np.nan, assign_colours(rows.strategy))
    assert [row.cells[0].text for row in table.rows][-1] != "chance"
    column = [heading.text for heading in table.headings].index("average bits per byte")
    ordinary = rows[rows.strategy != "joint_from_scratch"]
    bold = {row.cells[column].text for row in table.rows if row.cells[column].is_bold}
    assert bold == {f"{ordinary.average_accuracy.min():.3f}"}
    assert table.headings[column].is_ascending
    for row in lam_table(setups).rows:
        assert float(row.cells[-1].text) >= 0


@report_style()
def test_figures_say_bits_per_byte_and_where_better_is(runs, setups):
    rows, colours = selected_rows(setups), assign_colours(setups.strategy)
    ranking = draw_ranking(runs, rows, colours).figure.axes[0]
    assert ranking.get_xlabel() == "average bits per byte\n(lower is better)"
    assert ranking.get_yticklabels()[-1].get_text() == rows.setup.iloc[0]
    over = draw_over_tasks(runs, rows, colours).figure.axes[0]
    assert over.get_ylim()[1] > 1.01 and "chance" not in over.get_legend_handles_labels()[1]
    tradeoff = draw_tradeoff(setups, colours).figure.axes[0]
    assert tradeoff.xaxis_inverted() and tradeoff.yaxis_inverted()
    curves = draw_lam_curves(setups, colours).figure.axes[0]
    assert curves.get_ylabel() == "average bits per byte\n(test, lower is better)"
    matrix = draw_matrices(runs, rows).figure.axes[0]
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["1", "2"]
    image = matrix.images[0]
    best, worst = (sum(image.cmap(image.norm(value))[:3]) for value in image.get_clim())
    assert best > worst, "a better value is brighter, as for accuracy"


def test_the_files_of_a_report_name_the_quality(reported):
    page = (reported / "report.html").read_text(encoding="utf-8")
    assert "reaches average bits per byte" in page and "Bits per byte over tasks" in page
    assert "accuracy" not in page.partition("<main")[2].lower()
    header = (reported / "summary.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
    assert "average_quality_ci" in header and not any("accuracy" in name for name in header)
    assert "average bits per byte" in (reported / "summary.tex").read_text(encoding="utf-8")
    assert "bits per byte" in (reported / "figures/ranking.svg").read_text(encoding="utf-8")


def test_the_way_to_joint_training_follows_the_direction(reported):
    accuracies = main([str(ACCURACIES), "--output", str(reported.parent / "accuracies")])
    ways = [
        (folder / "report.html").read_text(encoding="utf-8").partition("That is ")[2].partition(" of the way")[0]
        for folder in (reported, accuracies)
    ]
    assert ways[0] == ways[1] and ways[0].endswith("%")


def test_the_answer_needs_neither_chance_nor_baselines(sweep, tmp_path):
    run = next(folder for folder in sorted(sweep.iterdir()) if folder.name.startswith("ewc"))
    output = main([str(run), "--output", str(tmp_path / "report")])
    assert "over 1 seed.</p>" in (output / "report.html").read_text(encoding="utf-8")


def test_a_report_on_two_qualities_has_a_section_for_each(sweep, tmp_path):
    output = main([str(sweep), str(ACCURACIES), "--output", str(tmp_path / "report")])
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "reaches average bits per byte" in page and "reaches average accuracy" in page
    table = pd.read_csv(output / "summary.csv")
    assert table.groupby("quality").average_quality.count().to_dict() == {"accuracy": 0, "bits_per_byte": 6}
    assert table.groupby("quality").average_accuracy.count().to_dict() == {"accuracy": 6, "bits_per_byte": 0}


def test_two_qualities_with_equal_options_are_two_benchmarks(tmp_path):
    frame = read_runs([write_bits_runs(tmp_path / "bits"), ACCURACIES])
    name = "permuted_digits, task-incremental, mlp"
    assert set(frame.status) == {"complete"}
    assert dict(zip(frame.quality, frame.benchmark, strict=True)) == {
        "accuracy": name,
        "bits_per_byte": f"{name}, quality=bits_per_byte",
    }
    benchmarks = split_benchmarks(frame, select_lam(summarize_seeds(frame), "validation"), "validation")
    assert {benchmark.quality.name for benchmark in benchmarks} == {"accuracy", "bits_per_byte"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"quality": {"name": "beauty", "direction": "higher"}}, "quality: expected a quality with its direction"),
        ({"quality": {"name": "mse", "direction": "higher"}}, "quality: expected a quality with its direction"),
        ({"quality": "mse"}, "quality: expected a quality with its direction"),
        ({"quality_matrix": None}, "quality_matrix is missing"),
        ({"average_quality": "low"}, "average_quality: expected a finite number"),
        ({"average_quality": 1.5}, "average_quality is 1.5, but the bits per byte matrix gives"),
        ({"quality_matrix": [[-1.0, 2.0], [3.0, 4.0]]}, "expected values of bits per byte of at least 0"),
    ],
)
def test_a_damaged_run_is_one_row_with_its_problem(tmp_path, values, problem):
    folder = write_bits_runs(tmp_path / "sweep")
    damaged = sorted(folder.glob("*/metrics.json"))[0]
    edit(damaged, **values)
    frame = read_runs(folder)
    (row,) = frame[frame.status != "complete"].itertuples()
    assert Path(row.folder) == damaged.parent and problem in row.problem


def test_files_without_a_quality_contain_accuracies(tmp_path):
    metrics = json.loads(next(ACCURACIES.glob("*/metrics.json")).read_text(encoding="utf-8"))
    assert "quality" not in metrics
    assert set(read_runs(ACCURACIES).quality) == {"accuracy"}
