"""Lines and tables in narrow terminals."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clbench.config.display import Display, print_named_rows
from clbench.metrics.registry import BUILT_IN

SECONDS = {"total": 1.0, "train": 1.0, "importance": 0.0, "evaluation": 0.0}


def plain(text: str) -> list[str]:
    """Return the lines of a terminal without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


@pytest.fixture(params=[40, 80, 200])
def width(request, monkeypatch) -> int:
    """Set the width of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("FORCE_COLOR", "1")
    return request.param


@pytest.mark.parametrize("tasks", [1, 2, 8, 10, 100, 200])
def test_accuracies_fit_into_the_terminal_and_are_not_cut(tasks, width, tmp_path, capsys):
    matrix = np.arange(tasks**2).reshape(tasks, tasks) / tasks**2
    with Display(tmp_path / "train.log") as display:
        display.after_task(tasks - 1, tasks, matrix[-1].tolist(), 1234.5)
        display.summary({"accuracy_matrix": matrix.tolist(), "seconds": SECONDS}, {}, tmp_path)
    line, *table, _ = plain(capsys.readouterr().out)
    assert line.startswith(f"task {tasks}/{tasks}  {matrix[-1, 0]:.3f}") and line.endswith("1234.5 s")
    assert f"{matrix[-1, -1]:.3f}  mean {matrix[-1].mean():.3f}" in line
    assert all(len(text) <= width for text in (line, *table)) or width == 40
    assert not any("…" in text for text in table)
    in_log = (tmp_path / "train.log").read_text(encoding="utf-8").split("results in")[0]  # wrapped at its own width
    assert " ".join(in_log.split()).startswith(" ".join(line.split()))


def test_another_quality_is_named_and_wider_numbers_fit(width, tmp_path, capsys):
    matrix = np.arange(100, 200, dtype=float).reshape(10, 10)
    results = {
        "quality": {"name": "mse", "direction": "lower"},
        "quality_matrix": matrix.tolist(),
        "average_quality": matrix[-1].mean(),
        "seconds": SECONDS,
    }
    with Display(tmp_path / "train.log") as display:
        display.after_task(9, 10, matrix[-1].tolist(), 1.5)
        display.summary(results, {"average_accuracy": BUILT_IN["average_accuracy"]}, tmp_path)
    line, *table, _ = plain(capsys.readouterr().out)
    assert all(len(text) <= width for text in (line, *table)) or width == 40
    assert not any("…" in text for text in table)
    assert "test MSE (row: after" in " ".join(" ".join(table).split())
    assert any(text.startswith("average MSE") and text.endswith("194.500") for text in map(str.rstrip, table))


def test_names_of_runs_can_be_copied_from_a_table(width, capsys):
    names = ["joint_from_scratch-seed0-4ce9bbe39f725251", "ewc-seed0-9115ac91b5b6cfd1"]
    rows = [["joint_from_scratch", "1e-05", "0.2313"], ["[/ewc]", "1e5", "failed: non-finite weights"]]
    print_named_rows(names, ["run", "strategy", "lam", "objective"], rows)
    lines = plain(capsys.readouterr().out)
    assert all(any(name in line for line in lines) for name in names)
    assert all(len(line) <= max(width, 46) for line in lines) and "…" not in "".join(lines)
    assert "[/ewc]" in "".join(lines)
