"""The hash of a configuration, which stays the same when unrelated code changes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import clbench
from clbench.config.compose import compose, without_hydra
from clbench.config.hashing import SCHEMA, SCHEMA_CHANGES, config_hash, identity, leaves
from clbench.config.options import conf_dir
from tests.conftest import replace_in

ROOT = Path(__file__).parents[2]
DECLARED = Path(__file__).with_name("declared.json")
"""The defaults of every yaml at the current schema, written by ``python -m tests.config.test_hashing``."""


def split(*overrides: str) -> tuple[DictConfig, Any]:
    """Return the configuration of a command, without the key ``hydra``, and its choices."""
    whole = compose(overrides)
    return without_hydra(whole), whole.hydra.runtime.choices


def test_defaults_do_not_enter_the_identity_in_any_notation():
    """An option at its default value leaves the identity empty, whether it is written as 1e3 or as 1000."""
    cfg, choices = split(
        "lam=1e3", "fisher=exact", "epochs=10", "lr=0.001", "data.tasks=5", "data.workers=2", "threads=3"
    )
    assert identity(cfg, choices)["options"] == {}
    assert config_hash(cfg, choices) == config_hash(*split())


def test_the_identity_has_what_differs_from_the_chosen_yamls():
    """The identity has the choices and the options whose values differ from the defaults of the chosen yaml files."""
    found = identity(*split("data=split_mnist", "epochs=10", "lam=5", "net.hidden=[10]", "+optimizer.make.eps=1"))
    assert found["choices"]["data"] == "split_mnist"
    assert found["options"] == {"epochs": 10.0, "lam": 5.0, "net.hidden": [10.0], "optimizer.make.eps": 1.0}


def test_an_option_derived_from_another_enters_once():
    assert identity(*split("seed=4"))["options"] == {"seed": 4.0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["~data.scale"], []),  # the default of the class differs from that of the yaml
        (["data.drop_last=true"], ["data.drop_last=1"]),
        (["strategy=ewc"], ["strategy=mas", "lam=1e3"]),
        (["lam=1"], ["lam=1.0000001"]),
        (["steps=[1,2,3,4,5]"], ["steps=[1,2,3,4,6]"]),
        (["net.dropout=0.1"], ["net.dropout=null"]),
    ],
)
def test_configurations_that_differ_have_different_hashes(one, other):
    assert config_hash(*split(*one)) != config_hash(*split(*other))


def test_an_experiment_equals_its_options_given_one_by_one():
    """A run of an experiment has the same hash as a run of its choices and options."""
    typed = identity(*split("experiment=permuted_mnist_avalanche"))
    options = [f"{group}={choice}" for group, choice in typed["choices"].items()]
    options += [f"{key}={json.dumps(value)}" for key, value in typed["options"].items()]
    whole = [option.replace(".0", "") if option.endswith(".0") else option for option in options]
    assert typed["options"] and config_hash(*split(*whole)) == config_hash(
        *split("experiment=permuted_mnist_avalanche")
    )


def test_every_option_of_a_yaml_from_outside_enters_the_identity(tmp_path):
    cfg, choices = split()
    own = {**choices, "strategy": "own"}
    first = identity(cfg, own)["options"]
    assert first["strategy._target_"] == "EWC" and first["strategy.fisher"] == "exact" and first["lam"] == 1000.0
    cfg.strategy.data = "validation"  # a default in the yaml of a user changes
    assert config_hash(cfg, own) != config_hash(*split())
    assert identity(cfg, own)["options"] != first


def hashes_of(root: Path) -> list[list[str]]:
    """``config_hash`` and ``first_task_hash`` of some configurations with the code and yamls below ``root``, in a new process."""
    code = (
        "from clbench.config.hashing import config_hash, first_task_hash\n"
        "from tests.config.test_hashing import split\n"
        "for typed in ([], ['strategy=mas', 'lam=3'], ['experiment=hsu2018_split_mnist', 'seed=2']):\n"
        "    cfg, choices = split(*typed)\n"
        "    print(config_hash(cfg, choices), first_task_hash(cfg, {}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_hashes_change_with_the_schema_only(tmp_path):
    """A new option and a class that moves to another module change no hash, and a new schema changes every hash."""
    folders = {"src/clbench": Path(clbench.__file__).parent, "conf": conf_dir(), "tests": ROOT / "tests"}
    for name, folder in folders.items():
        ignored = shutil.ignore_patterns("__pycache__", "finished_runs", "conf" if name == "src/clbench" else "")
        shutil.copytree(folder, tmp_path / name, ignore=ignored)
    before = hashes_of(tmp_path)
    replace_in(tmp_path / "conf/train.yaml", "\nseed: 0 ", "\nnew_option: 3   # a new one\nseed: 0 ")
    for name in ("ewc", "mas"):
        target = f"_target_: clbench.strategies.{name.upper()}\n"
        moved = f"_target_: clbench.elsewhere.{name.upper()}\n  another: [1, 2]   # a new one\n"
        replace_in(tmp_path / f"conf/strategy/{name}.yaml", target, moved)
    padded = tmp_path / "conf/experiment/hsu2018_split_mnist.yaml"
    replace_in(padded, "clbench.data.padding.Padded", "clbench.images.frames.Padded")
    after = hashes_of(tmp_path)
    assert [of_run for of_run, _ in after] == [of_run for of_run, _ in before]
    replace_in(tmp_path / "src/clbench/config/hashing.py", "\nSCHEMA = 1\n", "\nSCHEMA = 2\n")
    for now, then in zip(hashes_of(tmp_path), after, strict=True):
        assert now[0] != then[0] and now[1] != then[1]


def declared() -> dict[str, dict[str, Any]]:
    """Return the declared options of every yaml of a group with their defaults, and classes without their modules."""
    found = {}
    for file in sorted(conf_dir().rglob("*.yaml")):
        name = file.relative_to(conf_dir()).with_suffix("").as_posix()
        if name.partition("/")[0] in ("sweep", "launch", "logger", "experiment", "hydra", "study"):
            continue
        content = OmegaConf.to_container(OmegaConf.load(file))
        values = {key: value for key, value in leaves(content) if not key.startswith(("hydra.", "defaults"))}
        found[name] = {key: re.sub(r"clbench\.[\w.]*\.(\w+)", r"\1", str(value)) for key, value in values.items()}
    return found


def test_a_changed_default_needs_a_new_schema():
    """Increase SCHEMA, add the change to SCHEMA_CHANGES, and rewrite declared.json."""
    then, now = json.loads(DECLARED.read_text(encoding="utf-8")), declared()
    assert then["schema"] == SCHEMA and SCHEMA in SCHEMA_CHANGES
    for name, options in then["declared"].items():
        assert {key: now[name].get(key) for key in options} == options, f"{name}.yaml: a default has changed"
    assert then["declared"] == now, "new options are not recorded yet: run python -m tests.config.test_hashing"


if __name__ == "__main__":
    DECLARED.write_text(json.dumps({"schema": SCHEMA, "declared": declared()}, indent=1) + "\n", encoding="utf-8")
