"""The selection of lam on the first tasks, and the intransigence of a sweep, by the direction of the quality."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from clbench.metrics.quality import ACCURACY, QUALITIES, Quality
from clbench.sweep.grid import PlannedRun
from clbench.sweep.results import intransigences
from clbench.sweep.selection import lam_groups, select_lam, show_selection

BITS = QUALITIES["bits_per_byte"]


def planned(lam: float, strategy: str = "ewc") -> PlannedRun:
    options = {"seed": 0, "lam": lam, "strategy": {"name": strategy}, "data": {"name": "text8"}}
    return PlannedRun((f"lam={lam}",), strategy, OmegaConf.create(options), f"{strategy}{lam}")


def results(quality: Quality, mean: float) -> dict[str, Any]:
    """Return the metrics.json of a run whose validation values on the first two tasks have this mean."""
    matrix = [[mean, 9.0, 9.0], [mean - 0.1, mean + 0.1, 9.0], [None, None, None]]
    return {"quality": quality.describe(), "validation": {quality.key("accuracy_matrix"): matrix}}


@pytest.mark.parametrize(
    ("quality", "means", "selected"),
    [
        (ACCURACY, {1: 0.3, 10: 0.5, 100: 0.4}, 10),
        (BITS, {1: 3.0, 10: 2.0, 100: 4.0}, 10),
        (ACCURACY, {100: 0.5, 10: 0.5, 1: 0.4}, 10),
        (BITS, {100: 2.0, 10: 2.0, 1: 3.0}, 10),
    ],
    ids=["highest accuracy", "lowest bits", "smaller lam at equal accuracy", "smaller lam at equal bits"],
)
def test_the_best_lam_follows_the_direction_of_the_quality(quality, means, selected, capsys):
    runs = [planned(lam) for lam in means]
    found = {run.name: results(quality, means[run.cfg.lam]) for run in runs}
    rows = select_lam(lam_groups(runs), found, {}, tasks=2)
    assert [row.runs[0].cfg.lam for row in rows if row.is_selected] == [selected]
    show_selection(rows, tasks=2)
    assert f"validation {quality.label} on the first 2 tasks" in capsys.readouterr().out


def test_intransigence_is_positive_if_a_reference_is_better():
    runs = [planned(1), planned(1, "joint")]
    matrices = [[[2.0, 8.0], [3.0, 2.5]], [[2.0, 8.0], [2.0, 2.0]]]
    metrics = [{"quality": BITS.describe(), "quality_matrix": matrix} for matrix in matrices]
    references, texts = intransigences(runs, metrics)
    assert references == ["joint"] and texts == ["0.250", "0.000"]
