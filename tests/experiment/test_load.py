"""clbench.load restores the state of a run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import clbench
from clbench.config.compose import without_hydra
from clbench.config.hashing import content_hash
from clbench.errors import ConfigError
from clbench.runs.config_file import configuration, read_config, write_config
from clbench.training.measures import measured
from tests.conftest import replace_in

SMALL = ("data.tasks=3", "data.examples_per_task=64", "net.hidden=[16]", "epochs=1", "logger=none")


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    else:
        assert a == b


@pytest.mark.parametrize(
    "strategy",
    [
        "finetune",
        "ewc",
        "mas",
        "si",
        "lwf",
        "er",
        "derpp",
        "agem",
        "gem",
        "gpm",
        "nccl",
        "independent",
        "joint_from_scratch",
    ],
)
def test_the_loaded_net_and_strategy_are_those_of_the_task(run, tmp_path, strategy):
    """The net has the accuracies of its row of the accuracy matrix, and the strategy has the state of the checkpoint."""
    metrics = run(f"strategy={strategy}", *SMALL)
    for task in (0, 1):
        loaded = clbench.load(tmp_path / "run", task=task)
        found = measured(loaded.learner, loaded.sequence[task].test_dataloader())
        assert [measure.value() for measure in found] == metrics["accuracy_matrix"][task]
        saved = torch.load(tmp_path / f"run/checkpoints/task_{task}.ckpt", weights_only=True)
        assert_same(loaded.strategy.state_dict(), saved["strategy"])
        assert loaded.net is loaded.learner.net
        assert not loaded.learner.training


def test_without_a_task_the_last_finished_one_is_loaded(run, tmp_path):
    """Loading leaves the states of the random generators unchanged."""
    run("strategy=ewc", *SMALL)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    loaded = clbench.load(str(tmp_path / "run"))
    assert (loaded.task, loaded.cfg.seed, len(loaded.sequence)) == (2, 0, 3)
    assert (
        loaded.strategy.value(loaded.learner) > 0
    )  # three tasks have a penalty, of which at most one is at its anchor
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_run_with_init_from_is_loaded_without_that_file(run, tmp_path):
    run("strategy=finetune", *SMALL, folder="first")
    weights = tmp_path / "weights.ckpt"
    (tmp_path / "first/checkpoints/task_0.ckpt").rename(weights)
    run("strategy=finetune", f"init_from={weights}", *SMALL, folder="second")
    weights.unlink()
    assert clbench.load(tmp_path / "second", task=1).task == 1


@pytest.mark.parametrize("option", ["data=split_mnist", "data=mnist_usps", "data_dir=typed"])
def test_a_saved_configuration_refers_to_the_current_data_folder(composed, tmp_path, monkeypatch, option):
    """Also if there are several data sets."""
    monkeypatch.setenv("CLBENCH_DATA_DIR", "first")
    whole = composed("data=split_mnist", option)
    write_config(tmp_path, without_hydra(whole), whole.hydra.runtime.choices, [])
    monkeypatch.setenv("CLBENCH_DATA_DIR", "second")
    content = read_config(tmp_path)
    cfg = configuration(content)
    sources = cfg.data.source if OmegaConf.is_list(cfg.data.source) else [cfg.data.source]
    assert {source.root.split("/")[0] for source in sources} == {"second"}
    assert content_hash(cfg) == content["content_hash"]
    assert configuration(content, tmp_path).data_dir == str(tmp_path)


def test_what_cannot_be_loaded_is_an_error(run, tmp_path):
    with pytest.raises(
        ConfigError, match="nowhere: expected a run folder, but there is no such folder. Try the output_dir"
    ):
        clbench.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"expected a run folder, found no config.json. Try the output_dir of a run"):
        clbench.load(tmp_path)
    run("strategy=finetune", "checkpoints=none", *SMALL, folder="bare")
    with pytest.raises(
        ConfigError, match="expected a task checkpoint, found none. Try a run with checkpoints=all or last"
    ):
        clbench.load(tmp_path / "bare")
    run("strategy=finetune", *SMALL)
    (tmp_path / "run/checkpoints/task_1.ckpt").unlink()
    with pytest.raises(
        ConfigError, match="task=1: expected a task with a checkpoint in .*, one of 0, 2 .counted from 0.. "
    ):
        clbench.load(tmp_path / "run", task=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"_target_": "clbench.nets.mlp"',
            '"_target_": "clbench.nets.perceptron"',
            "expected configuration .* but the file was changed. Try the original file.",
        ),
        (
            None,
            None,
            "cannot be rebuilt .*, because the code has changed since the run. Try the package versions",
        ),
    ],
)
def test_changed_configuration_and_code_give_different_errors(run, tmp_path, old, new, message):
    run("strategy=finetune", *SMALL)
    if old is not None:
        replace_in(tmp_path / "run/config.json", old, new)
    else:  # simulates a run of a version in which the head had another name
        file = tmp_path / "run/checkpoints/task_2.ckpt"
        state = torch.load(file, weights_only=True)
        state["learner"] = {name.replace("head", "classifier"): p for name, p in state["learner"].items()}
        torch.save(state, file)
    with pytest.raises(ConfigError, match=message):
        clbench.load(tmp_path / "run")
