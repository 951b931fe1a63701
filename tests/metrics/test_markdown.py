from pathlib import Path

import pytest

from clbench.metrics.markdown import insert, tables
from clbench.metrics.quality import QUALITIES
from clbench.metrics.registry import BUILT_IN

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def test_the_tables_of_the_docs_are_those_of_the_registry():
    text = PAGE.read_text(encoding="utf-8")
    assert insert(text) == text, "run python -m clbench.metrics.markdown docs/metrics.md"


def test_every_metric_is_in_one_table_with_formula_and_direction():
    rows = [line for name in ("computed", "other") for line in tables()[name].splitlines()[2:]]
    assert [row.split("`")[1] for row in rows] == list(BUILT_IN)
    for row, metric in zip(rows, BUILT_IN.values(), strict=True):
        assert metric.formula in row and metric.meaning in row and row.count("|") == 6
        assert row.endswith({True: "| higher |", False: "| lower |", None: "|  |"}[metric.higher_is_better])


def test_every_quality_is_in_the_table_with_its_direction():
    rows = tables()["qualities"].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(QUALITIES)
    for row, quality in zip(rows, QUALITIES.values(), strict=True):
        assert quality.meaning in row and row.endswith(f"| {quality.direction} |")


@pytest.mark.parametrize("text", ["", "<!-- metrics: computed -->\n<!-- end -->"])
def test_a_page_without_both_markers_is_refused(text):
    with pytest.raises(ValueError, match="expected one <!-- metrics: "):
        insert(text)
