"""``clbench study benchmark strategy=NAME``: a strategy of the user compared with those of a suite."""

from __future__ import annotations

import json

import pytest

from clbench.errors import ConfigError
from clbench.study.__main__ import main
from clbench.study.own_strategy import load_suite, wanted

SUITE = """
title: A small benchmark
seeds: [0, 1]
metrics: {average accuracy: average_accuracy, forgetting: forgetting}
select: {by: average_accuracy, seeds: [5], overrides: [data.validation=0.1], extend: {}}
parts:
  task: [experiment=benchmark_digits, data=split_digits, scenario=task, data.tasks=2, steps=5]
  class: [experiment=benchmark_digits, data=split_digits, scenario=class, data.tasks=2, steps=5]
own: {lam: [1, 100], memory: [10]}
rows:
  - {name: finetune, overrides: [strategy=finetune]}
  - {name: ewc, overrides: [strategy=ewc], grid: {lam: [1, 100]}}
"""


@pytest.mark.slow
def test_a_strategy_is_compared_with_those_of_a_suite(tmp_path, monkeypatch, capsys):
    """Both runs that are repeated give the values of the suite, and EWC as an own strategy gives exactly those of EWC."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "more/strategy").mkdir(parents=True)
    (tmp_path / "more/strategy/mine.yaml").write_text(
        "# @package _global_\n# EWC under another name\ndefaults: [/strategy/ewc@_global_, _self_]\nlam: 3\nlr: 0.5\nbn: train\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="there are no results of small. Run clbench study small.yaml first"):
        main(["benchmark", "strategy=mine", "suite=small.yaml"])
    assert main(["small.yaml", "launch=serial"]) == 0
    command = ["benchmark", "strategy=mine", "suite=small.yaml", "launch=serial", "--config-dir", "more"]
    assert main([*command, "--dry-run"]) == 0
    assert "10 runs in" in capsys.readouterr().out
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "task, finetune, seed 0 and class, ewc, seed 0 gave exactly the committed values on this machine" in text
    folder = tmp_path / "outputs/studies/small-mine"
    found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["rows"]}
    for part in ("task", "class"):
        mine, ewc = rows[f"{part}, mine"], rows[f"{part}, ewc"]
        assert mine["selections"][0]["values"] == ewc["selections"][0]["values"]
        assert mine["selections"][0]["point"] == ewc["selections"][0]["point"]
    assert (found["own"], found["parts"]) == ("mine", ["task", "class"])
    for name in (
        "study.md",
        "table.md",
        "table.tex",
        "table.csv",
        "table.json",
        "figure.png",
        "figure.svg",
        "figure.pdf",
    ):
        assert (folder / name).stat().st_size > 0
    assert "| finetune |" in (folder / "table.md").read_text(encoding="utf-8")
    assert found["changed"] == []  # the suite sets lr after the strategy, and bn is unchanged
    text = (tmp_path / "more/strategy/mine.yaml").read_text(encoding="utf-8")
    other = text.replace("bn: train", "bn: freeze_after_first")
    (tmp_path / "more/strategy/other.yaml").write_text(other, encoding="utf-8")
    command[1] = "strategy=other"
    assert main([*command[:2], "lam=7", "parts=task", *command[2:]]) == 0  # one value: nothing is tuned
    found = json.loads((tmp_path / "outputs/studies/small-other/study.json").read_text(encoding="utf-8"))
    assert found["parts"] == ["task"]
    assert found["rows"][-1]["grid"] == {}
    assert "lam=7" in found["rows"][-1]["command"]
    assert found["changed"] == ["bn=freeze_after_first instead of train"]
    assert "The yaml file of other also sets bn=freeze_after_first instead of train." in capsys.readouterr().out


def test_the_overrides_of_the_command_are_divided():
    asked = wanted(
        ["strategy=mine", "lam=1,1e2", "strategy.share=0.5", "suite=mnist", "parts=[task,class]", "launch=serial"]
    )
    assert (asked.strategy, asked.suite, asked.parts) == ("mine", "mnist", ("task", "class"))
    assert asked.values == {"lam": [1, 100.0], "strategy.share": [0.5]}
    assert wanted(["strategy=a", "parts=task,class", "data_dir=x", "logger.csv=1"]).elsewhere == (
        "data_dir=x",
        "logger.csv=1",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "benchmark: expected one strategy, such as clbench study benchmark strategy=mine"),
        (["strategy=ewc,mas"], "benchmark: expected one strategy"),
        (["strategy=ewc", "lr=0.1"], "lr: expected an option of the strategy"),
        (["strategy=ewc", "suite=cars"], "suite=cars: expected one of digits, .*mnist"),
        (["strategy=ewc", "suite=seed_mas.yaml"], "seed_mas.yaml: expected the name of a study or a yaml file"),
        (["strategy=ewc", "--quick"], "benchmark: expected neither --quick"),
    ],
)
def test_a_benchmark_that_has_no_meaning_is_refused(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        main(["benchmark", *arguments, "--output", str(tmp_path)])


def test_a_suite_is_a_study_with_parts(tmp_path):
    (tmp_path / "flat.yaml").write_text(
        "title: T\nseeds: [0]\nrows: [{name: a, overrides: [strategy=ewc]}]\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="flat.yaml: expected a study with parts, whose rows are strategies"):
        load_suite(str(tmp_path / "flat.yaml"))
