"""Reports are derived from the records of metrics: new, missing and custom metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clbench.metrics.extra import RESERVED
from clbench.metrics.metric import Metric
from clbench.metrics.registry import BUILT_IN
from clbench.report.__main__ import main
from clbench.report.columns import filled_metrics, find_best_setups
from clbench.report.html_tables import strategies_table
from clbench.report.style import assign_colours
from clbench.report.summary import select_lam, selected_rows, summarize_seeds
from clbench.runs.read import read
from tests.make_finished_runs import FINISHED_RUNS, edit

OLDER = Path(__file__).parents[1] / "older_run"
REQUIRED = ("status", "accuracy_matrix")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def older(tmp_path) -> Path:
    """Return a finished run of an older version, which a test may modify."""
    return Path(shutil.copytree(OLDER, tmp_path / "older"))


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(FINISHED_RUNS / "task_incremental", tmp_path / "sweep"))


# ---- runs of older versions


def test_a_metric_newer_than_the_run_is_computed():
    (row,) = read(OLDER).itertuples()
    assert "incremental_accuracy" not in results_of(OLDER)
    r = row.accuracy_matrix
    assert row.incremental_accuracy == pytest.approx((r[0, 0] + r[1].mean()) / 2)


@pytest.mark.parametrize("key", sorted(results_of(OLDER).keys() - set(REQUIRED)))
def test_a_run_that_lacks_a_key_is_complete_and_all_else_is_read(older, key):
    whole = read(older).iloc[0]
    rest = results_of(older)
    del rest[key]
    (older / "metrics.json").write_text(json.dumps(rest), encoding="utf-8")
    row = read(older).iloc[0]
    assert (row.status, row.problem) == ("complete", None)
    others = [name for name in BUILT_IN if name == key or not np.isnan(row[name])]
    assert len(others) > 8
    assert row[others].astype(float).tolist() == pytest.approx(whole[others].astype(float).tolist(), nan_ok=True)


def test_a_run_with_the_accuracy_matrix_alone_is_reported(older, tmp_path):
    rest = {key: results_of(older)[key] for key in REQUIRED}
    (older / "metrics.json").write_text(json.dumps(rest), encoding="utf-8")
    row = read(older).iloc[0]
    assert row.average_accuracy == np.mean(rest["accuracy_matrix"][-1])
    assert {name for name in BUILT_IN if not np.isnan(row[name])} == {
        *("average_accuracy", "incremental_accuracy", "learning_accuracy", "forgetting", "backward_transfer"),
    }
    page = (main([str(older), "--output", str(tmp_path / "report")]) / "report.html").read_text(encoding="utf-8")
    assert "average accuracy" in page and "chance nan" not in page and ">nan<" not in page


@pytest.mark.parametrize("key", REQUIRED)
def test_a_run_without_status_or_accuracy_matrix_is_failed(older, key):
    rest = results_of(older)
    del rest[key]
    (older / "metrics.json").write_text(json.dumps(rest), encoding="utf-8")
    row = read(older).iloc[0]
    assert row.status == "failed" and f"{key} is missing" in row.problem


# ---- one record per metric


@pytest.mark.parametrize("position", range(len(BUILT_IN) + 1))
def test_a_new_metric_changes_no_value_of_another(position):
    """At any position it leaves the values and the directions of the other metrics unchanged."""
    rows = selected_rows(select_lam(summarize_seeds(read(FINISHED_RUNS / "task_incremental")), "validation"))
    records = list(BUILT_IN.values())
    records.insert(position, Metric("new", "lowest is best", higher_is_better=False))
    metrics = {record.name: record for record in records}
    with_new = rows.assign(new=np.arange(len(rows), dtype=float) + 1, new_ci=0.1)

    def columns(frame, known):
        table = strategies_table(frame, known, 0.1, assign_colours(frame.strategy))
        cells = zip(*(row.cells[3:] for row in table.rows), strict=True)
        return dict(zip(table.headings[3:], cells, strict=True))

    found, plain = columns(with_new, metrics), columns(rows, BUILT_IN)
    assert {heading: cells for heading, cells in found.items() if heading.text != "new"} == plain
    (new,) = (heading for heading in found if heading.text == "new")
    assert new.is_ascending
    best = find_best_setups(with_new, records)
    assert best.pop("new") == {rows[rows.strategy != "joint_from_scratch"].setup.iloc[0]}
    assert best == find_best_setups(rows, BUILT_IN.values())


def test_the_best_of_one_setup_and_bytes_of_zero_are_not_shown():
    accuracy, size = BUILT_IN["average_accuracy"], BUILT_IN["bytes"]
    rows = pd.DataFrame({"strategy": ["ewc", "mas", "joint"], "average_accuracy": [0.5, 0.6, 0.9], "bytes": [0, 0, 0]})
    rows["setup"] = rows.strategy
    assert find_best_setups(rows, [accuracy]) == {"average_accuracy": {"mas"}}
    assert find_best_setups(rows[1:], [accuracy]) == {}
    assert filled_metrics(rows, [accuracy, size]) == [accuracy]
    assert filled_metrics(rows.assign(bytes=[0, 8, 0]), [accuracy, size]) == [accuracy, size]


def test_a_user_metric_is_in_every_part_of_a_report(copied, tmp_path):
    """Runs without this metric have a missing value."""
    about = {"meaning": "lowest accuracy on a <task>", "higher_is_better": True, "format": ".1%"}
    for number, folder in enumerate(sorted(copied.glob("ewc*"))):
        edit(folder / "metrics.json", worst_task=0.5 + number / 100, extra_metrics={"worst_task": about})
    frame = read(copied)
    assert set(frame.status) == {"complete"}
    assert frame.worst_task.notna().sum() == 20 and frame[frame.strategy == "finetune"].worst_task.isna().all()
    report = main([str(copied), "--output", str(tmp_path / "report")])
    table = pd.read_csv(report / "summary.csv").set_index("strategy")
    assert table.loc["ewc", "worst_task"].notna().all() and np.isnan(table.loc["finetune", "worst_task"])
    assert list(table.columns).index("worst_task") < list(table.columns).index("intransigence")
    tex = (report / "summary.tex").read_text(encoding="utf-8")
    assert "& worst task &" in tex and r"\%" in tex and "{%" not in tex
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "worst task" in page and "lowest accuracy on a &lt;task&gt;" in page and "%</" in page


def test_a_metric_of_a_user_cannot_have_the_name_of_a_column():
    columns = read(FINISHED_RUNS / "task_incremental").columns
    assert set(columns) <= RESERVED | BUILT_IN.keys()


@pytest.mark.parametrize("described", [[], "text", {"worst_task": "text"}, {"forgetting": {"higher_is_better": True}}])
def test_an_invalid_metric_description_is_ignored(older, described):
    edit(older / "metrics.json", extra_metrics=described)
    row = read(older).iloc[0]
    assert row.status == "complete" and "worst_task" not in row
    assert row.forgetting == results_of(older)["forgetting"]
