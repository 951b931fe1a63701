"""``clbench report FOLDER --watch``: the progress of a sweep from its files."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from clbench import run
from clbench.errors import ConfigError
from clbench.report.__main__ import main
from clbench.report.watch import progress_of, table_of, watch
from clbench.runs import sweep_log

LABELS = {"a": "ewc seed=0", "b": "ewc seed=1", "c": "mas seed=0"}


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three runs, of which one has ended and one has learned one of two tasks."""
    sweep_log.begin(tmp_path, LABELS)
    sweep_log.end(tmp_path, "a", "0.9123, 2.0 s")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/train.log").write_text("", encoding="utf-8")
    os.utime(tmp_path / "b/train.log", (100, 100))
    return tmp_path


def shown(progress):
    terminal = Console(width=100, record=True, file=io.StringIO())
    terminal.print(table_of(progress))
    return terminal.export_text()


def test_progress_counts_the_runs_of_the_latest_command(sweep):
    start = float((sweep / "sweep.log").read_text(encoding="utf-8").split()[1])
    progress = progress_of(sweep, start + 10)
    assert (progress.total, progress.ended, progress.failed) == (3, {"ewc seed=0": "0.9123, 2.0 s"}, 0)
    assert progress.started == {"ewc seed=1": ("", pytest.approx(start + 10 - 100))}
    assert progress.left == pytest.approx(20)
    text = shown(progress)
    assert "1 of 3 runs done, 1 started, about 20 s left" in text
    assert "ewc seed=1" in text and "mas seed=0" not in text
    sweep_log.begin(sweep, {"d": "si seed=0"})
    assert progress_of(sweep, start + 10).total == 1


def test_tasks_and_failures_are_shown(sweep):
    run(["steps=1", "data.tasks=3", "stop_after_task=2", "logger=none", "checkpoints=last"], sweep / "b", quiet=True)
    sweep_log.end(sweep, "c", "failed: non-finite weights")
    text = shown(progress_of(sweep, 1e10))
    assert "2 of 3 runs done, 1 started, 1 failed" in text
    assert "2 of 3 tasks" in text and "failed: non-finite weights" in text


def test_watch_ends_when_all_runs_have_ended(sweep, capsys):
    rest = iter(["b", "c"])
    watch(sweep, wait=lambda _: sweep_log.end(sweep, next(rest), "0.5, 1.0 s"))
    assert "3 of 3 runs done, 0 started" in capsys.readouterr().out


def test_watch_needs_the_folder_of_a_sweep(tmp_path):
    with pytest.raises(ConfigError, match="expected the folder of a sweep, which has a sweep.log"):
        main([str(tmp_path), "--watch"])
    with pytest.raises(ConfigError, match="--watch: expected the folder of one sweep, got 2"):
        main([str(tmp_path), str(tmp_path), "--watch"])
