"""The end of a search whose sweeper is not that of clbench, such as Optuna."""

from __future__ import annotations

import json
import shlex

import pytest
from omegaconf import OmegaConf, open_dict

from clbench.config.compose import without_hydra
from clbench.errors import ConfigError
from clbench.experiment.launch import Launch
from clbench.train import train

SMALL = ("data.tasks=2", "data.examples_per_task=64", "net.hidden=[16]", "trainer=cpu", "logger=none")


@pytest.mark.slow
def test_a_search_ends_with_its_best_run_and_the_command_for_it(command, tmp_path):
    callback = "+hydra.callbacks.best_run._target_=clbench.sweep.search.ShowBestRun"
    options = ("hydra/sweeper=basic", callback, "strategy=ewc", "epochs=1,10", "lam=1,10", *SMALL, "output_dir=search")
    done = command("-m", *options)
    assert done.returncode == 0, done.stderr
    values = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))["validation"]["average_accuracy"]
        for file in tmp_path.glob("search/*/metrics.json")
    }
    assert len(values) == 4
    *_, best, folder, repeat = done.stdout.splitlines()
    name = folder.removeprefix("its folder: search/")
    assert values[name] == max(values.values())
    assert best.startswith(f"best: {values[name]:.4f} with epochs=10 lam=1")
    again = command(*shlex.split(repeat.removeprefix("repeat it: clbench train ")), "output_dir=again")
    assert again.returncode == 0, again.stderr
    results = json.loads((tmp_path / "again/metrics.json").read_text(encoding="utf-8"))
    assert results["validation"]["average_accuracy"] == values[name]


@pytest.mark.slow
def test_a_search_with_optuna_ends_with_its_best_run(command):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = command("-m", "sweep=optuna", "hydra.sweeper.n_trials=3", "epochs=1", *SMALL, "output_dir=search")
    assert done.returncode == 0, done.stderr
    assert "repeat it: clbench train" in done.stdout and "sweep=optuna" not in done.stdout


def test_a_search_for_the_highest_mean_squared_error_is_refused(composed, tmp_path):
    """The quality is known when the data is read, before training."""
    whole = composed("data=digit_mass", "strategy=finetune", "trainer=cpu", "logger=none", "epochs=1")
    with open_dict(whole):
        whole.hydra.sweeper = {"_target_": "a.search", "direction": "maximize"}
    launch = Launch(tmp_path, OmegaConf.create({"hydra": whole.hydra}), quiet=True)
    with pytest.raises(ConfigError, match=r"direction=maximize: expected minimize, because lower .* runs of MSE"):
        train(without_hydra(whole), launch)
