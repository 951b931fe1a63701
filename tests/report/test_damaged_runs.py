"""A report of damaged and odd runs: each is listed with the reason, and changes no number of the other runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clbench.errors import ConfigError
from clbench.report.__main__ import main
from clbench.runs.diff import difference
from clbench.runs.find import find_runs
from clbench.runs.read import read
from tests.make_finished_runs import FINISHED_RUNS

Damage = Callable[[Path], object]
SOUND = sorted((FINISHED_RUNS / "task_incremental").glob("*-seed[0-1]-*"))
RUN = sorted((FINISHED_RUNS / "task_incremental").glob("ewc-seed0-*"))[0]


def content(text: bytes | str, name: str = "metrics.json") -> Damage:
    """Return a function that replaces a file."""
    return lambda run: (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def value(path: str, new: Any, name: str = "metrics.json") -> Damage:
    """Return a function that sets the value at a path of keys, such as data.tasks, in a JSON file."""

    def change(run: Path) -> None:
        whole = part = json.loads((run / name).read_text(encoding="utf-8"))
        *keys, last = path.split("/")
        for key in keys:
            part = part[int(key) if isinstance(part, list) else key]
        part[int(last) if isinstance(part, list) else last] = new
        (run / name).write_text(json.dumps(whole), encoding="utf-8")

    return change


def missing(path: str, name: str = "metrics.json") -> Damage:
    """Return a function that removes a top-level key."""

    def change(run: Path) -> None:
        whole = json.loads((run / name).read_text(encoding="utf-8"))
        del whole[path]
        (run / name).write_text(json.dumps(whole), encoding="utf-8")

    return change


def config(path: str, new: Any) -> Damage:
    return value(path, new, "config.json")


def folder_at(name: str) -> Damage:
    return lambda run: ((run / name).unlink(), (run / name).mkdir())


def link_at(name: str, target: str) -> Damage:
    return lambda run: ((run / name).unlink(), (run / name).symlink_to(target))


NULLS = [[None, None], [None, None]]
UNREADABLE = "metrics.json cannot be read: "
WRONG_CONFIG = "config.json cannot be read: "
CONTRADICTS = "metrics.json contradicts its accuracy matrix: "

DAMAGES: list[tuple[Damage, str]] = [
    *((content(text), UNREADABLE) for text in ("", "{", "\0", b"\xff\xfe", "[" * 100_000, "1" * 5_000)),
    *((content(text), f"{UNREADABLE}expected an object") for text in ("null", "[]", "3", '"text"')),
    (content("{}"), f"{UNREADABLE}status is missing"),
    (content('{"status": "complete"}'), f"{UNREADABLE}accuracy_matrix is missing"),
    *((value("status", new), f"{UNREADABLE}status: expected one of") for new in ("done", 5, ["complete"], True)),
    (value("status", None), f"{UNREADABLE}status is missing"),
    *((value("accuracy_matrix", new), f"{UNREADABLE}accuracy_matrix: expected a list") for new in (3, "x", {})),
    *((value("accuracy_matrix", new), UNREADABLE) for new in ([3], [None], [["x", 0], [0, 0]], [[True, 0], [0, 0]])),
    *((value("accuracy_matrix/0/0", new), UNREADABLE) for new in (float("inf"), 10**400, "0.5", [], 1e301)),
    *((value("accuracy_matrix", new), UNREADABLE) for new in ([], [[]], [[0.5], [0.5, 0.5]], [[0.5, 0.5]])),
    *((value("accuracy_matrix", new), CONTRADICTS) for new in ([[0.5]], NULLS)),
    *((value("accuracy_matrix/0/0", new), CONTRADICTS) for new in (None, float("nan"), 0.99, -1, 7)),
    *((value("average_accuracy", new), CONTRADICTS) for new in (0.99, None, float("nan"))),
    *((value("average_accuracy", new), UNREADABLE) for new in ("0.5", [], {}, True, float("inf"))),
    *((value("forgetting", new), UNREADABLE) for new in ("low", [0.1])),
    *((value("validation", new), f"{UNREADABLE}validation") for new in (3, [], {}, {"accuracy_matrix": "x"})),
    (value("validation/average_accuracy", "x"), f"{UNREADABLE}validation.average_accuracy"),
    (value("validation/average_accuracy", 1), f"{CONTRADICTS}validation.average_accuracy"),
    *((value("data", new), f"{UNREADABLE}data") for new in (3, [], {"classes": 3}, {"classes": [3]}, {"tasks": "2"})),
    (value("data/scenario", 5), f"{UNREADABLE}data.scenario: expected a text, got 5"),
    (value("data/tasks", 3), f"{CONTRADICTS}data.tasks has 3 tasks"),
    (value("data/classes", [[0, 1]]), f"{CONTRADICTS}data.classes"),
    *((value("per_task", new), f"{UNREADABLE}per_task") for new in (3, [3], [{"nll": "x"}, {}])),
    *((value("seconds", new), f"{UNREADABLE}seconds") for new in (3, {"total": "x"}, {"total": [1]})),
    *((value("importance", new), f"{UNREADABLE}importance") for new in (3, [3], [{"bytes": "x"}], [{"bytes": 0.5}])),
    *((value("warnings", new), f"{UNREADABLE}warnings") for new in (3, [3], [{}], [{"kind": 3, "text": "x"}])),
    *((value("within_tasks", new), f"{UNREADABLE}within_tasks") for new in (3, [3], [{"task": 0}])),
    (value("within_tasks", [{"task": 1, "step": 1, "accuracy": [0.1]}]), CONTRADICTS),
    *((value("versions", new), f"{UNREADABLE}versions") for new in (3, ["torch"], {"torch": 2})),
    (folder_at("metrics.json"), f"{UNREADABLE}expected a file"),
    (link_at("metrics.json", "metrics.json"), f"{UNREADABLE}Too many levels"),
    (link_at("metrics.json", "nowhere"), "no metrics.json"),
    (link_at("metrics.json", "/dev/zero"), f"{UNREADABLE}expected a file"),
    (lambda run: ((run / "metrics.json").unlink(), os.mkfifo(run / "metrics.json")), f"{UNREADABLE}expected a file"),
    *((content(text, "config.json"), WRONG_CONFIG) for text in ("", "{", "[]", "null", "{}", b"\xff")),
    *((missing(key, "config.json"), f"{WRONG_CONFIG}{key} is missing") for key in ("config", "choices", "options")),
    *((config("config/seed", new), f"{WRONG_CONFIG}config.seed: ") for new in ("one", 0.5, 2**70, [1], True)),
    *(
        (config("config/lam", new), f"{WRONG_CONFIG}config.lam: ")
        for new in ("high", ["high"], True, float("inf"), 10**400)
    ),
    *((config("choices/strategy", new), f"{WRONG_CONFIG}choices.strategy") for new in (None, 3, ["ewc"])),
    *((config("options", new), WRONG_CONFIG) for new in ("lam", [3], ["nothing"], {"lam": 1})),
    *((config("overrides", new), f"{WRONG_CONFIG}overrides") for new in ("lam=1", [3], None)),
    *((config("derived", new), f"{WRONG_CONFIG}derived") for new in (3, [[]], None)),
    (config("config", {}), f"{WRONG_CONFIG}config.seed is missing"),
    (folder_at("config.json"), f"{WRONG_CONFIG}expected a file"),
    (lambda run: (run / "config.json").unlink(), "no config.json can be read"),
    (lambda run: [file.unlink() for file in run.iterdir() if file.name != "config.json"], "no metrics.json"),
    (value("status", "running"), "2 of 2 tasks done: running or interrupted"),
    (value("status", "partial"), "partial: trained on a part of its batches or steps"),
]
"""Functions that damage a run folder, and the beginning of the reason in the report."""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """Return a folder with complete runs, whose seeds are 0 and 1, and a run with the seed 1000 + k for each damage k."""
    folder = tmp_path_factory.mktemp("runs")
    for run in SOUND:
        shutil.copytree(run, folder / run.name)
    for number, (damage, _) in enumerate(DAMAGES):
        run = Path(shutil.copytree(RUN, folder / f"damaged_{number}"))
        config("config/seed", 1000 + number)(run)
        damage(run)
    (folder / "loop").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    (folder / "file").write_text("", encoding="utf-8")
    (folder / "sweep.json").write_text('{"commands": 3, "runs": [1]}', encoding="utf-8")
    return folder


def test_each_damaged_run_is_listed_with_its_reason(damaged):
    frame = read(damaged)
    assert len(frame) == len(SOUND) + len(DAMAGES)
    found = frame.set_index(frame.folder.map(lambda folder: Path(folder).name))
    assert set(found.loc[[run.name for run in SOUND], "status"]) == {"complete"}
    for number, (_, reason) in enumerate(DAMAGES):
        row = found.loc[f"damaged_{number}"]
        assert row.status != "complete" and row.problem.startswith(reason), (number, row.status, row.problem)


def test_damaged_runs_change_no_number_of_a_report(damaged, tmp_path, capsys):
    all_runs = main([str(damaged), "--output", str(tmp_path / "all")])
    out = capsys.readouterr().out
    assert out.count("skipped: ") == 5 and f"and {len(DAMAGES) - 5} more skipped runs" in out
    sound = main([*(str(damaged / run.name) for run in SOUND), "--output", str(tmp_path / "sound")])
    pd.testing.assert_frame_equal(pd.read_csv(all_runs / "summary.csv"), pd.read_csv(sound / "summary.csv"))
    page = (all_runs / "report.html").read_text(encoding="utf-8")
    assert all(f"damaged_{number}<" in page for number in range(len(DAMAGES)))


def test_damaged_runs_are_compared_or_refused_in_one_line(damaged):
    compared = 0
    for number in range(len(DAMAGES)):
        with suppress(ConfigError):
            compared += difference(RUN, damaged / f"damaged_{number}") is not None
    assert compared == sum(reason.startswith((CONTRADICTS, "2 of 2", "partial")) for _, reason in DAMAGES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_cannot_be_opened_is_listed(tmp_path):
    for name in ("open", "closed"):
        shutil.copytree(RUN, tmp_path / name)
    (tmp_path / "closed").chmod(0)
    try:
        problems = dict(zip(read(tmp_path).folder, read(tmp_path).problem, strict=True))
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert problems == {
        str(tmp_path / "open"): None,
        str(tmp_path / "closed"): "the folder cannot be opened: Permission denied",
    }


def test_runs_inside_of_runs_and_sweeps_are_all_found(tmp_path):
    sweep = Path(shutil.copytree(FINISHED_RUNS / "task_incremental", tmp_path / "sweep"))
    shutil.copytree(RUN, sweep, dirs_exist_ok=True)  # a run that was started in the folder of a sweep
    shutil.copytree(RUN, sweep / "deep/er")
    shutil.copytree(RUN, sweep / "deep/er/²")
    assert len(find_runs([tmp_path])) == len(find_runs([tmp_path, sweep, sweep / "deep"])) == 30 + 3
