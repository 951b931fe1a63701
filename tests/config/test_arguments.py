"""The options of a strategy, and their names in Python and on the command line."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn

from clbench.config.arguments import arguments_of, option_keys, translate, translate_errors
from clbench.config.options import OPTIONS, conf_dir, foreign_option_message, options_of, strategies_with
from clbench.data.scenario import Scenario
from clbench.errors import ConfigError, LearnerError, ScenarioError, StrategyError, Unstable
from clbench.learner import Learner
from clbench.strategies import EWC, SI, Strategy

HAVE = {
    **{name: ["memory"] for name in ("agem", "der", "derpp", "er", "er_ace", "gem", "icarl", "nearest_mean")},
    **{name: [] for name in ("finetune", "imm_mean", "independent", "joint", "joint_from_scratch", "shrink_perturb")},
    **{name: ["lam"] for name in ("adam_moments", "l2", "l2_init", "lwf", "rwalk", "si")},
    **{name: ["lam", "fisher", "samples", "fisher_batch"] for name in ("ewc", "ewc_lora")},
    "online_ewc": ["lam", "gamma", "fisher", "samples", "fisher_batch"],
    "kfac_ewc": ["lam", "fisher", "samples"],
    **{name: ["lam", "samples", "fisher_batch"] for name in ("ewc_dr", "mas")},
    **{name: ["fisher", "samples", "fisher_batch"] for name in ("fisher_merging", "imm_mode")},
    "nccl": ["lam", "memory"],
    "gpm": ["samples"],
}


@pytest.mark.parametrize("file", sorted((conf_dir() / "strategy").glob("*.yaml")), ids=lambda file: file.stem)
def test_options_of_a_strategy_are_those_its_yaml_passes_on(composed, file):
    """The options of a strategy are the arguments of its class to which its yaml file passes a value."""
    assert options_of(composed(f"strategy={file.stem}")) == HAVE[file.stem]


def test_the_strategies_with_an_option_are_found(composed):
    for option in OPTIONS:
        assert strategies_with(option) == sorted(name for name, has in HAVE.items() if option in has)


@pytest.mark.parametrize(
    "written",
    [
        "${ lam }",
        "${oc.select:lam}",
        "${oc.select: lam, 3}",
        "${..lam}",
        "${strategy.damping}",
        "${test_double:${lam}}",
    ],
)
def test_every_way_to_refer_to_an_option_counts(composed, written):
    OmegaConf.register_new_resolver("test_double", lambda x: 2 * x, replace=True)
    cfg = composed("strategy=si")
    OmegaConf.set_readonly(cfg, False)
    cfg.strategy.lam = written
    cfg.strategy.damping = "${lam}"
    assert options_of(cfg) == ["lam"]
    cfg.strategy.damping, cfg.strategy.lam = 0.1, 30.0
    assert options_of(cfg) == []


def test_a_key_that_the_class_does_not_take_gives_it_no_option(composed):
    cfg = composed("strategy=si", "+strategy.samples=${samples}")
    assert options_of(cfg) == ["lam"]
    cfg = composed("strategy=si", "+strategy.samples=${samples}", "strategy._target_=nowhere.Class")
    assert options_of(cfg) == ["lam", "samples"]  # a class that cannot be imported is reported when it is built


def test_an_option_that_a_yaml_does_not_pass_on_is_named(composed):
    cfg = composed("strategy=ewc", "samples=10")
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg.strategy.samples
    assert foreign_option_message(cfg, "ewc", "samples").endswith(
        "does not pass this option to its class. Add the line samples: ${samples} to it."
    )


def test_arguments_of_a_class_include_those_of_base_constructors():
    """Arguments that a constructor passes on are those of the constructor that receives them."""
    assert list(arguments_of(Strategy)) == []
    quadratic = ["include", "exclude", "frozen", "grow", "consolidate_at", "keep_previous", "store"]
    assert list(arguments_of(SI)) == ["lam", "damping", "clamp", *quadratic]
    taken = arguments_of(EWC)
    of_labels = ["reduction", "ignore_index", "class_dim"]
    assert list(taken)[:8] == ["lam", "fisher", "fisher_batch", "label_samples", "loss", *of_labels]
    assert set(list(taken)[8:]) == {"samples", "outputs", "seed", "data", "chunk", "every", *quadratic}
    assert taken["lam"].default == 1e3

    class Any(Strategy):
        def __init__(self, **options): ...

    assert arguments_of(Any) is None


def test_every_key_of_a_yaml_is_an_argument_of_its_class(composed):
    for name in HAVE:
        cfg = composed(f"strategy={name}")
        takes = arguments_of(get_class(cfg.strategy._target_))
        assert set(cfg.strategy) - {"_target_"} <= set(takes), name


def test_library_errors_name_the_keys_of_the_command_line(composed):
    """On the command line, an error of the library names the configuration keys and writes values as yaml does."""
    cfg = composed("strategy=nccl")
    keys = option_keys(cfg, "strategy")
    assert (keys["lam"], keys["gamma"], keys["seed"]) == ("lam", "strategy.gamma", "seed")
    text = "gamma=-1: expected None or lam=2, got -1. Try outer_lr=True, trainer.gamma=1"
    translated = "strategy.gamma=-1: expected null or lam=2, got -1. Try strategy.outer_lr=true, trainer.gamma=1"
    assert translate(text, cfg, "strategy") == translated


def test_errors_of_scenarios_and_learners_name_options(composed):
    cfg = composed("scenario=class")
    with pytest.raises(ScenarioError, match="^scenario.head=multi: "), translate_errors(cfg):
        Scenario("class", "multi")
    with pytest.raises(LearnerError, match="^scheduler.interval=batch: "), translate_errors(cfg):
        Learner(nn.Linear(2, 2), torch.optim.SGD, scheduler_interval="batch")
    with pytest.raises(LearnerError, match="^scheduler_interval=batch: "):
        Learner(nn.Linear(2, 2), torch.optim.SGD, scheduler_interval="batch")


@pytest.mark.parametrize("kind", [StrategyError, Unstable])
def test_the_error_class_stays_and_other_errors_are_unchanged(composed, kind):
    cfg = composed("strategy=si")
    with pytest.raises(kind, match="^strategy.damping=0$"), translate_errors(cfg):
        raise kind("damping=0")
    with pytest.raises(ConfigError, match="^damping=0$"), translate_errors(cfg):
        raise ConfigError("damping=0")


@pytest.mark.parametrize(("key", "value"), [("strategy.damping", "-1"), ("lam", "-1"), ("strategy.damping", "0")])
def test_command_line_and_python_report_the_same_error(run, key, value):
    """The message names the key on the command line and the argument in Python, and is otherwise the same."""
    with pytest.raises(ConfigError) as typed:
        run("strategy=si", f"{key}={value}")
    argument = key.removeprefix("strategy.")
    with pytest.raises(ConfigError) as called:
        SI(**{argument: int(value) if value[-1].isdigit() else value})
    message = str(called.value).replace("True or False", "true or false")
    assert str(typed.value) == message.replace(f"{argument}=", f"{key}=", 1)


INHERITING = """# @package _global_
# EWC with every importance doubled
defaults:
  - /strategy/ewc@_global_
  - _self_
lam: 5
strategy:
  _target_: tests.config.test_arguments.Doubled
"""


class Doubled(EWC):
    def importance(self, trainer, pl_module):
        return {name: 2 * f for name, f in super().importance(trainer, pl_module).items()}


def test_a_user_yaml_inherits_the_options_of_another(composed, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/doubled.yaml").write_text(INHERITING, encoding="utf-8")
    cfg = composed(f"hydra.searchpath=[file://{tmp_path}]", "strategy=doubled", "samples=10")
    assert options_of(cfg) == HAVE["ewc"]
    assert (cfg.lam, cfg.strategy.lam, cfg.strategy.samples) == (5, 5, 10)
    assert cfg.strategy._target_.endswith("Doubled")


def test_data_errors_name_the_full_keys_of_options(composed):
    """Errors of the data name the full key of an option, whether it belongs to the split or to another group."""
    keys = option_keys(composed("data=split_digits"), "data")
    assert (keys["tasks"], keys["order"], keys["seed"]) == ("data.tasks", "data.split.order", "seed")
    assert (keys["batch_size"], keys["scenario"]) == ("batch_size", "scenario")
