"""The command clbench study: files, exit status, resuming, launchers and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from time import monotonic, sleep

import pytest

from clbench.errors import ConfigError
from clbench.runs.folder import lock_folder
from clbench.study.__main__ import main
from clbench.study.parse import names
from clbench.study.runs import read_origin

TABLE = """
title: Fine-tuning and EWC on bits
seeds: [0, 1]
select: {by: average_accuracy, on: validation, overrides: [data.validation=0.2], extend: {}}
rows:
  - {name: fine-tuning, overrides: &few [data.tasks=2, data.examples_per_task=40, steps=8, strategy=finetune]}
  - {name: EWC, overrides: [data.tasks=2, data.examples_per_task=40, steps=8, strategy=ewc], grid: {lam: [1, 10]}}
claims:
  - {text: EWC is good, row: EWC, metric: average_accuracy, reaches: CLAIM, on_at_least: 2}
"""
FILES = {f"table.{end}" for end in ("md", "tex", "csv", "json")} | {f"figure.{end}" for end in ("png", "svg", "pdf")}


def write_study(folder, text=TABLE, **changes):
    for old, new in {"CLAIM": "1.5", **changes}.items():
        text = text.replace(old, new)
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return str(folder / "mine.yaml")


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "clbench.study", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_study_writes_its_files_and_its_claim_decides(tmp_path, capfd):
    """A file with another claim, which holds, reuses all runs."""
    command = [write_study(tmp_path), "launch=serial", "--output", str(tmp_path / "out")]
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert "does not hold: EWC is good (0 of 2 seeds)" in out
    assert "mine: 0 runs done, 8 left" in err  # 2 fine-tuning, 4 trials, 2 final runs
    assert "EWC lam=10 seed=1: " in err and "left)" in err
    folder = tmp_path / "out/mine"
    assert {file.name for file in folder.iterdir()} == FILES | {"study.json", "study.md", "runs"}
    found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert found["schema"] == 1 and [row["name"] for row in found["rows"]] == ["fine-tuning", "EWC"]
    assert found["rows"][1]["selections"][0]["by"] == "validation.average_accuracy"
    assert 0 < found["shared_seconds"] < found["seconds"]
    assert [len(row["cells"]) for row in found["rows"]] == [2, 6]
    first = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/metrics.json")}

    write_study(tmp_path, CLAIM="0")
    damaged = next(folder.glob("runs/*/origin.json"))
    damaged.write_text("{", encoding="utf-8")  # is written again, without training
    assert main(command) == 0
    assert read_origin(damaged)
    capfd.readouterr()
    assert main(command) == 0
    assert "seed=" not in capfd.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/metrics.json")} == first


def test_a_dry_run_checks_all_rows_and_prints_the_cost(tmp_path, capfd):
    assert main([write_study(tmp_path), "--dry-run", "--output", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    assert "8 runs in " in out and "6 runs to do now: about " in out and "2 more follow when options are chosen" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps=8, strategy=finetune": "lamb=1"}, "mine: row fine-tuning: .*lamb"),
        ({"strategy=finetune": "strategy=finetune, fisher=exact"}, "mine: row fine-tuning: .*fisher"),
        ({"steps=8, strategy=finetune": "\"steps='8'\""}, "mine: row fine-tuning: steps=8: expected an integer >= 1"),
        ({"steps=8, strategy=finetune": "strategy=ewc, lam=-1"}, "mine: row fine-tuning: lam=-1: expected"),
        ({"[data.validation=0.2]": "[data.validation=0]"}, "mine: row EWC: select: expected validation data"),
    ],
)
def test_a_wrong_row_is_refused_before_any_run(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        main([write_study(tmp_path, **change), "launch=serial", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_override_that_affects_results_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch_size=3: expected overrides that do not affect the results"):
        main([write_study(tmp_path), "batch_size=3", "--output", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="steps=3: rows of the study set this option. Change it in the file"):
        main([write_study(tmp_path), "steps=3", "--output", str(tmp_path / "out")])
    one, other = "strategy=ewc, lam=1]", "strategy=ewc], seeds: [0, 1]"  # lam=3 would change the second row only
    text = TABLE.replace("strategy=finetune]", one).replace("strategy=ewc], grid: {lam: [1, 10]}", other)
    with pytest.raises(ConfigError, match="lam=3: rows of the study set this option"):
        main([write_study(tmp_path, text), "lam=3", "--output", str(tmp_path / "out")])


def test_a_run_that_fails_is_reported_and_hides_no_other(tmp_path):
    """Its number of samples is refused when the data is loaded; the other runs are kept."""
    wrong = write_study(tmp_path, **{"lam: [1, 10]": "samples: [99, 10]"})
    with pytest.raises(ConfigError, match=r"2 of 6 runs are not done \(EWC samples=99 seed=0: samples=99: expected"):
        main([wrong, "launch=serial", "--output", str(tmp_path / "out")])
    assert len(list(tmp_path.glob("out/mine/runs/*/origin.json"))) == 4


@pytest.mark.slow
def test_a_trial_that_diverges_loses_and_is_not_tried_again(tmp_path, capfd):
    """The weights of lam = 1e9 become non-finite with SGD."""
    text = TABLE.replace("steps=8, strategy=ewc]", "steps=40, strategy=l2, optimizer=sgd, lr=0.1]")
    command = [write_study(tmp_path, text, **{"[1, 10]": "[0.1, 1e9]"}), "launch=serial", "--output", str(tmp_path)]
    main(command)
    found = json.loads((tmp_path / "mine/study.json").read_text(encoding="utf-8"))
    assert found["rows"][1]["selections"][0]["point"]["lam"] < 1
    assert [point["diverged"] for point in found["rows"][1]["trials"][0]["points"] if point["point"]["lam"] == 1e9] == [
        2
    ]
    capfd.readouterr()
    main(command)
    assert "seed=" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_study_is_interrupted_resumed_and_verified(tmp_path):
    """One run of the resumed study is verified by training it again."""
    slower = ("checkpoints=all", "logger=csv")  # so that the signal arrives before the last run ends
    command = ("seed_bit_ops", "--quick", "launch=joblib", "hydra.launcher.n_jobs=1", *slower, "--output", tmp_path)
    runs, folder = tmp_path / "seed_bit_ops/runs", tmp_path / "seed_bit_ops-quick"

    process = start(*command)
    deadline = monotonic() + 240
    while not list(runs.glob("*/origin.json")) and monotonic() < deadline:
        sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.endswith("Interrupted. Rerun the same command to resume.\n")
    finished = {file: file.stat().st_mtime_ns for file in runs.glob("*/origin.json")}
    assert 1 <= len(finished) < 4
    assert not list(folder.iterdir())

    process = start(*command)
    out, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "its claims do not count" in out
    assert f"{len(finished)} runs done, {4 - len(finished)} left" in stderr
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in found["rows"]] == ["EWC, lam 1e6", "EWC, lam 10"]
    for row in found["rows"]:
        assert [cell["seed"] for cell in row["cells"]] == [0, 1]
        for cell in row["cells"]:
            assert list(runs.glob(f"*-{cell['config_hash']}/metrics.json"))
            assert cell.keys() == {"seed", "overrides", "values", "config_hash", "fingerprint", "seconds", "commit"}
    page = (folder / "study.md").read_text(encoding="utf-8")
    assert "its numbers mean nothing" in page
    assert "python -m clbench.train experiment=seed_bit_ops lam=10 steps=20" in page
    assert (folder / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_is_verified_and_a_changed_number_is_noticed(tmp_path, capfd):
    command = [write_study(tmp_path), "--output", str(tmp_path)]
    main([*command, "launch=serial"])
    check = [*command, "--verify", "EWC", "--seed", "1"]
    capfd.readouterr()
    assert main(check) == 0
    assert capfd.readouterr().out.count("identical") == 3  # two values and the verdict
    file = tmp_path / "mine/study.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    chosen = found["rows"][1]["selections"][0]["config_hashes"]
    for cell in found["rows"][1]["cells"]:
        if cell["config_hash"] in chosen:
            cell["values"]["average_accuracy"] += 0.25
    file.write_text(json.dumps(found), encoding="utf-8")
    assert main(check) == 1
    assert "differs (-0.25" in capfd.readouterr().out


@pytest.mark.slow
def test_a_study_that_another_process_runs_is_left_alone(tmp_path):
    runs = tmp_path / "seed_bit_ops/runs"
    runs.mkdir(parents=True)
    with lock_folder(runs, str(runs), ""):
        process = start("seed_bit_ops", "--quick", "--output", tmp_path)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "runs is in use by another process. Wait until it has ended, or name another folder" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.slow
def test_the_list_names_every_study(capfd):
    assert main(["--list"]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in names())


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_results_are_named(tmp_path, content):
    """A file with the name of a study of this project is compared with its own results."""
    file = tmp_path / "seed_mas.yaml"
    file.write_text(TABLE.replace("CLAIM", "1"), encoding="utf-8")
    results = tmp_path / "seed_mas/study.json"
    results.parent.mkdir()
    results.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="study.json: the file is damaged. Run the study again"):
        main([str(file), "--verify", "--output", str(tmp_path)])


def test_a_study_needs_a_name():
    with pytest.raises(ConfigError, match="expected a study, got none. Try benchmark_digits, "):
        main([])
    with pytest.raises(ConfigError, match="ewc: expected option=value after the name of the study"):
        main(["seed_mas", "ewc"])
    with pytest.raises(ConfigError, match="--seed: expected --verify ROW with it"):
        main(["seed_mas", "--seed", "1"])
