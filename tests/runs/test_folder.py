import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clbench.config.hashing import SCHEMA
from clbench.errors import ConfigError
from clbench.runs.folder import RunFolder, atomically
from clbench.training.checkpointing import Checkpoints

STATE = {
    **{key: {} for key in ("learner", "strategy", "monitor", "seconds")},
    **{"step": 0, "importance": [], "evaluation": {"matrices": {}, "per_task": [], "within": []}},
}
"""A task checkpoint without values, with the parts that each one needs."""

MID_TASK_STATE = {
    **{"epoch": 0, "global_step": 1, "state_dict": {}, "loops": {"fit_loop": {}}, "callbacks": {"Log": {}}},
    **{"optimizer_states": [], "lr_schedulers": []},
    "run": {
        **{"schema": SCHEMA, "config_hash": "abc", "seconds": {}},
        "random": {"python": (), "numpy": [], "torch": torch.get_rng_state()},
    },
}
"""A mid-task checkpoint without values, with the parts that each one needs."""


def metrics(config_hash="abc", matrix=((0.5, 0.25), (0.125, 1.0)), **others):
    return {
        "status": "running",
        "strategy": {"name": "ewc"},
        "data": {"scenario": "task"},
        "seed": 3,
        "initial_accuracy": [math.nan, math.nan],
        **{key: [] for key in ("within_tasks", "warnings")},
        "validation": None,
        "seconds": dict.fromkeys(("train", "importance", "evaluation", "shared", "total"), 0.0),
        "config_hash": config_hash,
        "accuracy_matrix": [list(row) for row in matrix],
        **others,
    }


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class WriterFailed(Exception):
    pass


def half_a_file(file):
    file.write_text("half a li", encoding="utf-8")
    raise WriterFailed


def test_a_file_is_written_whole_without_a_temporary_file_left(tmp_path):
    atomically(tmp_path / "a.txt", lambda file: file.write_text("old", encoding="utf-8"))
    atomically(tmp_path / "a.txt", lambda file: file.write_text("new", encoding="utf-8"))
    assert files(tmp_path) == {"a.txt": b"new"}


def test_the_file_itself_is_not_touched_while_it_is_written(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")

    def write(file):
        file.write_text("new", encoding="utf-8")
        assert file.parent == tmp_path  # in the same folder, so that it can be renamed
        assert target.read_text(encoding="utf-8") == "old"

    atomically(target, write)
    assert target.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("before", [{}, {"a.txt": b"old"}], ids=["no file", "old file"])
def test_a_writer_that_raises_keeps_the_old_file(tmp_path, before):
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WriterFailed):
        atomically(tmp_path / "a.txt", half_a_file)
    assert files(tmp_path) == before


def test_undefined_values_are_null_in_metrics_json(tmp_path):
    folder = RunFolder(tmp_path / "run", "abc")
    nothing = math.nan
    folder.write_metrics(
        metrics(
            matrix=[[0.5, 0.25], [nothing, nothing]],
            initial=(nothing, 0.1),
            per_task=[{"accuracy": nothing, "nll": math.inf}] * 2,
            forgetting=None,
        )
    )
    text = (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    assert found == folder.metrics()
    assert found["accuracy_matrix"] == [[0.5, 0.25], [None, None]]
    assert found["initial"] == [None, 0.1]
    assert found["per_task"] == [{"accuracy": None, "nll": None}] * 2
    assert found["forgetting"] is None


def test_the_accuracy_matrix_has_a_row_for_each_learned_task(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    folder.write_metrics(metrics(matrix=[[0.5, 0.25], [math.nan, math.nan]]))
    header = "after_task_index,task_index_0,task_index_1\n"
    assert (tmp_path / "accuracy_matrix.csv").read_text(encoding="utf-8") == header + "0,0.5,0.25\n"
    folder.write_metrics(metrics())
    assert (tmp_path / "accuracy_matrix.csv").read_text(encoding="utf-8") == header + "0,0.5,0.25\n1,0.125,1.0\n"


def test_a_missing_folder_is_created(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", "abc")
    assert (tmp_path / "a" / "b").is_dir()
    assert folder.metrics() is None
    assert Checkpoints(folder).load() is None


def test_the_folder_of_another_run_is_named_and_not_touched(tmp_path):
    RunFolder(tmp_path, "abc").write_metrics(metrics())
    before = files(tmp_path)
    with pytest.raises(ConfigError) as error:
        RunFolder(tmp_path, "xyz")
    for part in (
        str(tmp_path),
        "strategy ewc",
        "seed 3",
        "config abc",
        "expected xyz",
        "Try another folder, or remove it.",
    ):
        assert part in str(error.value)
    assert files(tmp_path) == before
    assert RunFolder(tmp_path, "abc").metrics()["seed"] == 3


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    Checkpoints(RunFolder(tmp_path, "abc")).save(0, STATE)
    with pytest.raises(ConfigError, match=r"task_0.ckpt belongs to another run \(expected config xyz, got abc\)"):
        Checkpoints(RunFolder(tmp_path, "xyz")).load()


def test_temporary_files_of_dead_processes_only_are_removed(tmp_path):
    """Files that a live process or another machine writes stay."""
    folder = RunFolder(tmp_path, "abc")
    Checkpoints(folder).save(0, STATE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, elsewhere = socket.gethostname().replace(".", "-"), "another-machine"
    writers = [(here, dead.pid), (here, os.getppid()), (elsewhere, dead.pid)]
    parts = [tmp_path / f"checkpoints/.task_1.ckpt.{host}.{pid}.part" for host, pid in writers]
    for part in parts:
        part.write_text("half a li", encoding="utf-8")
    RunFolder(tmp_path, "abc")
    assert [part.exists() for part in parts] == [False, True, True]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    in_use = pytest.raises(
        ConfigError, match="is in use by another process. Wait until it has ended, or try another folder."
    )
    with folder.lock(), in_use, folder.lock():
        pass
    with folder.lock():
        pass


def test_a_task_checkpoint_replaces_the_mid_task_checkpoint(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    Checkpoints(folder).save(0, STATE)
    torch.save(MID_TASK_STATE, Checkpoints(folder).mid_task_path(1))
    assert Checkpoints(folder).find_mid_task(0) is None and Checkpoints(folder).find_mid_task(1) == Checkpoints(
        folder
    ).mid_task_path(1)
    assert Checkpoints(folder).load()["task"] == 0
    Checkpoints(folder).save(1, STATE)
    assert Checkpoints(folder).find_mid_task(1) is None


@pytest.mark.parametrize("content", ["not json", "[]", '{"config_hash": "abc"}', '{"strategy": "ewc"}'])
def test_a_foreign_metrics_json_is_refused_and_not_touched(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"expected a metrics.json of clbench \(.*\). Remove the file and rerun the same command"
    ):
        RunFolder(tmp_path, "abc")
    assert files(tmp_path) == {"metrics.json": content.encode()}


@pytest.mark.parametrize(
    ("keep", "left"),
    [("all", {"task_0.ckpt", "task_1.ckpt", "task_2.ckpt"}), ("last", {"task_2.ckpt"}), ("none", set())],
)
def test_checkpoints_decides_which_are_kept(tmp_path, keep, left):
    folder = RunFolder(tmp_path, "abc", keep)
    for task in range(3):
        Checkpoints(folder).save(task, {**STATE, "weights": torch.full((2,), float(task))})
    assert {Path(name).name for name in files(tmp_path)} == left
    state = Checkpoints(folder).load()
    if left:
        assert state["task"] == 2
        assert state["weights"].tolist() == [2.0, 2.0]
    else:
        assert state is None


@pytest.mark.parametrize("keep", ["all", "last"])
def test_the_newest_checkpoint_is_that_of_the_highest_number(tmp_path, keep):
    folder = RunFolder(tmp_path, "abc", keep)
    for task in (8, 9, 10):
        Checkpoints(folder).save(task, {**STATE, "weights": torch.tensor(float(task))})
    assert Checkpoints(folder).load()["task"] == 10
    assert Checkpoints(folder).load()["weights"].item() == 10


def test_a_checkpoint_that_could_run_code_is_not_loaded(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    Checkpoints(folder).save(0, {**STATE, "thing": Path("neither a tensor nor a plain value")})
    with pytest.raises(ConfigError, match="objects that could run code. Delete checkpoints/task_0.ckpt to start over."):
        Checkpoints(folder).load()


def test_an_unknown_checkpoints_option_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="checkpoints=best: expected one of all, last, none, got 'best'."):
        RunFolder(tmp_path / "run", "abc", "best")
    assert files(tmp_path) == {}
    assert not (tmp_path / "run").exists()
