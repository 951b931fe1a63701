"""The committed results and their pages."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from clbench.study.figure import figure, sorted_rows
from clbench.study.page import markdown
from clbench.study.parse import load
from clbench.study.ranks import methods_of
from clbench.study.table import records, table_with_legend, terminal_table, to_csv, to_tex
from clbench.study.write import save_figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))
from write_results import index, with_texts  # noqa: E402

COMMITTED = sorted((ROOT / "results").glob("*.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_a_committed_report_agrees_with_its_numbers(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert file.with_suffix(".md").read_text(encoding="utf-8") == markdown(found, f"{file.stem}.png")
    assert file.with_suffix(".png").exists()


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_the_texts_of_a_result_are_those_of_its_study(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found == with_texts(found, load(file.stem)), "run python scripts/write_results.py"


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_every_number_of_a_result_is_on_its_page(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    page = markdown(found, f"{file.stem}.png")
    selections = [selection["metrics"] for row in found["rows"] for selection in row["selections"]]
    trials = [point["metrics"] for row in found["rows"] for rule in row["trials"] for point in rule["points"]]
    for number in (number for metrics in [*selections, *trials] for number in metrics.values()):
        assert f"{number['mean']:.4f}" in page
        assert number["se"] is None or f"± {number['se']:.4f}" in page


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_every_committed_number_that_differs_has_a_finding(file):
    for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        if any(number["verdict"] == "differs" for number in row["selections"][0]["metrics"].values()):
            assert row["findings"], row["name"]


def test_the_page_shows_every_committed_result():
    assert (ROOT / "docs/results.md").read_text(encoding="utf-8") == index(
        [json.loads(f.read_text(encoding="utf-8")) for f in COMMITTED]
    )


def test_the_picture_of_a_committed_result_can_be_drawn():
    for file in COMMITTED:
        assert figure(json.loads(file.read_text(encoding="utf-8"))).axes


def test_published_points_are_drawn_inside_the_grid_of_a_row():
    found = json.loads((ROOT / "results/vandeven2025_split_cifar10.json").read_text(encoding="utf-8"))
    found["rows"] = [row for row in found["rows"] if row["name"] in ("no EWC", "EXACT")]
    found["rows"][1]["published_curve"] = {"average accuracy": [[1e-9, 0.1], [1, 0.7], [10, 0.8], [1e30, 0.9]]}
    panel = figure(found).axes[-1]
    theirs = [line.get_xydata().tolist() for line in panel.lines if line.get_marker() == "D"]
    assert theirs == [[[1, 0.7]], [[10, 0.8]]]


def test_a_grid_is_drawn_in_order_and_dollar_signs_are_text(tmp_path):
    """A metric that trial runs do not have, such as the forgetting of one task, has no curve."""
    found = json.loads((ROOT / "results/vandeven2025_split_cifar10.json").read_text(encoding="utf-8"))
    row, first = found["rows"][1], next(iter(found["metrics"]))
    points = row["trials"][0]["points"]
    points.reverse()
    found["title"] = row["name"] = r"$\foo$"
    curve, *_ = figure(found).axes[-1].containers
    assert curve.get_label() == r"\$\foo\$"
    x = curve.lines[0].get_xdata().tolist()
    assert x == sorted(x) and len(x) > 1
    del points[0]["metrics"][first]
    save_figure(found, tmp_path / "figure.svg")


def test_a_figure_has_a_panel_per_metric_and_sorted_rows():
    found = json.loads((ROOT / "results/seed_mas.json").read_text(encoding="utf-8"))
    axes = figure(found).axes
    assert [each.get_title() for each in axes] == [*found["metrics"], "split", "permuted"]
    rows = sorted_rows(found)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [row["name"] for row in rows]
    groups = [row["name"].partition(",")[0] for row in rows]
    assert groups == sorted(groups, reverse=True)  # split, permuted
    means = [row["selections"][0]["metrics"]["ACC"]["mean"] for row in rows if row["name"].startswith("split")]
    assert means == sorted(means, reverse=True)


def test_a_committed_result_is_on_one_line_of_every_table():
    for file in COMMITTED:
        found = json.loads(file.read_text(encoding="utf-8"))
        lines = records(found)
        methods = len(methods_of(found)) if "parts" in found else len(lines)
        assert list(csv.DictReader(io.StringIO(to_csv(found))))[-1]["method"] == lines[-1]["method"]
        assert to_tex(found).count(r"\\") == methods + 1
        assert len(table_with_legend(found)) == methods + (2 if "parts" in found else 4)
        assert terminal_table(found).row_count == methods
        assert all(line[metric] is not None for line in lines for metric in found["metrics"])
