"""Runs of a sweep with an identical first task train it once, and end bit-identical to single runs."""

from __future__ import annotations

import json
from functools import cache

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

import clbench
from clbench.experiment.build import shared_first_task_key
from clbench.strategies import EWC, MAS
from clbench.training.checkpointing import last_step_inside
from tests.conftest import trainer
from tests.test_train import STRATEGIES, same_checkpoint
from tests.training.test_checkpointing import custom

TINY = ("data.tasks=2", "data.examples_per_task=70", "net.hidden=[12]", "net.dropout=0.3", "trainer=cpu", "logger=none")
SIZES = ("epochs=2", "batch_size=16")  # 5 steps per epoch
IDLE = {
    "adam_moments",
    "ewc",
    "ewc_dr",
    "finetune",
    "gpm",
    "joint",
    "joint_from_scratch",
    "kfac_ewc",
    "l2",
    "lwf",
    "mas",
    "online_ewc",
    "shrink_perturb",
}


class WithHook(EWC):
    """Defines a hook and declares nothing, so that all its options may affect the first task."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)


class WithHookAndDeclaration(MAS):
    """Defines a hook, and declares that no option affects the first task."""

    shares_first_task = ()

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)


class Doubled(EWC):
    """Overrides only code that runs after the first task, so that it inherits the declaration of EWC."""

    def importance(self, trainer, pl_module):
        return {name: 2 * f for name, f in super().importance(trainer, pl_module).items()}


@pytest.fixture
def key(composed):
    """``key("strategy=ewc")`` returns the key of the shared first task."""

    @cache
    def of(*overrides):
        cfg = composed(*overrides)
        OmegaConf.set_readonly(cfg, False)
        with open_dict(cfg):
            cfg.pop("hydra")
        return shared_first_task_key(cfg, instantiate(cfg.strategy), {})

    return of


def test_only_strategies_idle_in_the_first_task_share_it(key):
    keys = {name: key(f"strategy={name}", "optimizer=adam", *SIZES) for name in STRATEGIES}
    assert len({keys[name] for name in IDLE}) == 1
    merging = {keys[name] for name in ("imm_mean", "imm_mode", "fisher_merging")}
    assert len(merging) == 1  # one class, whose options matter after the first task
    assert len(set(keys.values())) == len(STRATEGIES) - len(IDLE) + 1 - 2


SAME = [
    ("ewc", "lam=7", "fisher=sample", "samples=5", "fisher_batch=4", "strategy.exclude=['*.bias']"),
    ("si", "lam=7", "strategy.damping=2", "strategy.clamp=true"),
    ("agem", "strategy.replay=3"),
    ("gem", "strategy.margin=0.5"),
    ("nccl", "lam=7", "strategy.outer_lr=1", "strategy.temperature=2", "strategy.reg=3", "strategy.terms=[b]"),
    ("ewc", "save_every=5", "log_every=3", "output_dir=elsewhere", "checkpoints=last"),
]
OTHER = [
    ("ewc", "seed=1"),
    ("ewc", "epochs=3"),
    ("ewc", "eval_every=5"),
    ("ewc", "net.hidden=[3]"),
    ("mas", "strategy.online=true"),
    ("si", "strategy.exclude=['*.bias']"),
    ("er", "memory=3"),
    ("er", "strategy.replay=3"),
    ("agem", "memory=3"),
    ("agem", "strategy.memory_fill=end"),
    ("der", "strategy.alpha=3"),
    ("nccl", "strategy.inner_steps=3"),
    ("nccl", "memory=3"),
    ("ewc", "strategy._target_=tests.training.test_shared_first_task.WithHook"),
    ("mas", "strategy._target_=tests.training.test_shared_first_task.WithHookAndDeclaration"),
]


def test_options_without_effect_on_the_first_task_share_it(key):
    for strategy, *options in SAME:
        assert key(f"strategy={strategy}") == key(f"strategy={strategy}", *options), options


def test_options_that_change_the_first_task_do_not_share_it(key):
    for strategy, *options in OTHER:
        assert key(f"strategy={strategy}") != key(f"strategy={strategy}", *options), options


def test_an_option_used_outside_the_strategy_counts(key):
    """Another value of it gives another first task."""
    for setting in ("data.examples_per_task=${samples}", "+optimizer.make.weight_decay=${lam}"):
        assert key("lam=1", "samples=30", setting) != key("lam=2", "samples=40", setting)


def test_warnings_are_not_shared_with_the_first_task(tmp_path):
    """A run that reuses the first task of another strategy does not repeat the warnings on that strategy."""
    options = ("data=split_digits", "scenario=class", "steps=2", "data.tasks=2", "net.hidden=[16]", "trainer=cpu")
    kinds = {}
    for name in ("ewc", "finetune"):
        metrics = clbench.run([f"strategy={name}", *options], tmp_path / name, quiet=True, sweep=tmp_path)
        kinds[name] = [warning["kind"] for warning in metrics["warnings"]]
        assert bool(metrics["shared_first_task"]) and (name == "ewc" or metrics["seconds"]["shared"] > 0)
    assert kinds == {"ewc": ["class_incremental"], "finetune": []}


def test_all_options_of_a_user_strategy_with_a_hook_count(key):
    """The strategy can declare otherwise."""
    target = "strategy._target_=tests.training.test_shared_first_task.WithHook"
    assert key("strategy=ewc", target) != key("strategy=ewc", target, "lam=7")
    target = "strategy._target_=tests.training.test_shared_first_task.WithHookAndDeclaration"
    assert key("strategy=mas", target) == key("strategy=mas", target, "lam=7") != key("strategy=mas")
    target = "strategy._target_=tests.training.test_shared_first_task.Doubled"
    assert key("strategy=ewc", target, "lam=7") == key("strategy=ewc") == key("strategy=finetune")


def test_nothing_is_shared_if_disabled_or_with_early_stopping(key):
    """With early stopping the end of the first task is not known."""
    assert key("strategy=ewc", "share_first_task=false") is None
    assert key("strategy=ewc", "patience=2") is None


def assert_same(a, b):
    """Assert that two run folders differ only in seconds and sharing; return their metrics."""
    first, second = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (a, b))
    for name in first.keys() - {"seconds", "shared_first_task"}:
        assert first[name] == second[name], name
    states = [torch.load(folder / "checkpoints/task_1.ckpt", weights_only=True) for folder in (a, b)]
    assert same_checkpoint(*({**state, "shared_first_task": None} for state in states))
    return first, second


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (SIZES, True),
        pytest.param(
            ("steps=6", "batch_size=16", "eval_every=2"), True, marks=pytest.mark.slow
        ),  # the last step starts an epoch
        pytest.param(
            ("epochs=3", "batch_size=16", "consolidate=best", "+trainer.accumulate_grad_batches=2"),
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(("epochs=3", "batch_size=100"), False, marks=pytest.mark.slow),  # every step ends an epoch
    ],
    ids=["epochs", "steps", "best", "one batch"],
)
def test_a_run_from_a_shared_first_task_ends_bit_identical(tmp_path, options, shared):
    def learn(strategy, folder, sweep=None):
        clbench.run([f"strategy={strategy}", *TINY, *options], tmp_path / folder, quiet=True, sweep=sweep)

    learn("ewc", "alone")
    learn("finetune", "sweep/0", tmp_path / "sweep")
    learn("ewc", "sweep/1", tmp_path / "sweep")
    first = json.loads((tmp_path / "sweep/0/metrics.json").read_text(encoding="utf-8"))
    alone, forked = assert_same(tmp_path / "alone", tmp_path / "sweep/1")
    files = [file.name for file in (tmp_path / "sweep/shared_first_tasks").glob("*.ckpt")]
    assert files == ([f"{forked['shared_first_task']}.ckpt"] if shared else [])
    assert first["shared_first_task"] == forked["shared_first_task"]
    assert alone["seconds"]["shared"] == first["seconds"]["shared"] == 0
    assert (0 < forked["seconds"]["shared"] < forked["seconds"]["total"]) == shared


class AskForLastStep(L.Callback):
    def on_train_start(self, trainer, pl_module):
        self.step = last_step_inside(trainer)
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 3}, 14),
        ({"max_epochs": 3, "max_steps": 7}, 6),
        ({"max_epochs": 3, "max_steps": 6}, 4),  # step 5 ends an epoch
        ({"max_epochs": 3, "limit_train_batches": 1}, None),  # every step ends an epoch
        ({"max_epochs": 3, "max_steps": 7, "accumulate_grad_batches": 2}, 5),  # 3 steps an epoch
        ({"max_epochs": -1}, None),  # it is unknown when the training ends
    ],
    ids=str,
)
def test_the_last_step_that_is_shared_ends_no_epoch(composed, options, expected):
    """An epoch has five batches."""
    module, data = custom(composed)
    trainer([ask := AskForLastStep()], **options).fit(module, **data)
    assert ask.step == expected


@pytest.mark.slow
def test_a_sweep_of_two_parallel_jobs_shares_the_first_task(command, tmp_path):
    """Every run ends with the results that it has without sharing."""
    sweep = ("-m", "strategy=ewc,mas,si,nccl,lwf,er,joint_from_scratch", "lam=1,100", *TINY, *SIZES)
    for folder, options in (
        ("together", ["launch=joblib", "hydra.launcher.n_jobs=2"]),
        ("apart", ["share_first_task=false"]),
    ):
        done = command(*sweep, *options, f"output_dir={folder}", imported=folder == "apart")
        assert done.returncode == 0, done.stderr
    runs = sorted(file.parent.name for file in (tmp_path / "together").glob("*/metrics.json"))
    assert len(runs) == 12  # er and joint_from_scratch have no lam
    pairs = [assert_same(tmp_path / "together" / name, tmp_path / "apart" / name) for name in runs]
    keys = [shared["shared_first_task"] for shared, _ in pairs]
    assert (
        len(set(keys)) == 4 == len(list((tmp_path / "together/shared_first_tasks").glob("*.ckpt")))
    )  # si, nccl, er, and one for the others
    forked = [shared["seconds"]["shared"] > 0 for shared, _ in pairs]
    assert sum(forked) == 12 - 4
    assert all(apart["shared_first_task"] is None and apart["seconds"]["shared"] == 0 for _, apart in pairs)
