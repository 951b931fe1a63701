"""What strategies declare by class attributes is true, and a forgotten declaration gets the safe value."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import ClassVar

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

import clbench.strategies
from clbench.config.options import conf_dir
from clbench.errors import ConfigError
from clbench.nets import add_lora
from clbench.strategies import (
    EWC,
    L2,
    MAS,
    SI,
    LearnerStrategy,
    LwF,
    Merging,
    QuadraticStrategy,
    RehearsalStrategy,
    Strategy,
)
from clbench.strategies.base import BATCH_HOOKS, DECLARATIONS, INHERITED
from tests.conftest import trainer
from tests.strategies.test_nccl import learner_of, sequence_of
from tests.strategies.test_penalty import Plain

CONFIGURED = sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))
TINY = ("data.tasks=2", "data.examples_per_task=70", "net.hidden=[12]", "net.dropout=0.3", "logger=none", "steps=6")


def class_of(name: str) -> type[Strategy]:
    target = OmegaConf.load(conf_dir() / f"strategy/{name}.yaml").strategy._target_
    return getattr(clbench.strategies, target.rpartition(".")[2])


SHARING = [name for name in CONFIGURED if class_of(name).shares_first_task is True]
PARTLY = [name for name in CONFIGURED if isinstance(class_of(name).shares_first_task, tuple)]

LORA = "net.lora={rank:2,targets:['*']}"


def plain(name: str) -> Plain:
    """Return a module that the strategy trains, if it trains any module."""
    if name == "adam_moments":
        return Plain(torch.optim.Adam)
    return add_lora(Plain(), rank=2, targets=["body"]) if name == "ewc_lora" else Plain()


CHANGED = {
    "si": ("lam=7", "strategy.damping=2", "strategy.clamp=true"),
    "rwalk": ("lam=7", "strategy.combine=added_mean", "strategy.normalize=range"),
    "imm_mean": ("strategy.weighting=fisher", "strategy.start=initial"),
    **dict.fromkeys(
        ("imm_mode", "fisher_merging"), ("strategy.weighting=equal", "strategy.start=last", "fisher=empirical")
    ),
    "agem": ("strategy.replay=3",),
    "gem": ("strategy.replay=3", "strategy.margin=0.5"),
    "nccl": (
        *("lam=7", "strategy.replay=3", "strategy.outer_steps=2", "strategy.outer_lr=1", "strategy.temperature=2"),
        *(
            "strategy.gamma=2",
            "strategy.reg=3",
            "strategy.outer_clip=null",
            "strategy.kl=batchmean",
            "strategy.terms=[b]",
        ),
    ),
}
"""For the strategies whose first task depends on some options: all other options, with another value."""


class BeforeConsolidation(L.Callback):
    """Records weights and strategy state at the end of the first task, before the strategy's own hook."""

    found: ClassVar[list] = []

    def on_train_end(self, trainer, pl_module):
        strategy = next(c for c in trainer.callbacks if isinstance(c, Strategy))
        weights = {name: p.detach().clone() for name, p in pl_module.state_dict().items()}
        self.found.append((weights, strategy.state_dict()))


@pytest.fixture
def first_task(run):
    """``first_task("si", ...)``: weights and strategy state before the first consolidation of a run from the command line."""

    def learn(name, *options):
        BeforeConsolidation.found.clear()
        run(
            "+trainer.callbacks=[{_target_: tests.strategies.test_declarations.BeforeConsolidation}]",
            f"strategy={name}",
            "optimizer=adam",
            "batch_size=16",
            "stop_after_task=1",
            *TINY,
            *options,
            folder=str(len(seen)),
        )
        seen.append(name)
        return BeforeConsolidation.found[0]

    seen: list[str] = []
    return learn


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_strategies_that_share_the_first_task_train_it_alike(first_task):
    """They train it as fine-tuning does."""
    weights, _ = first_task("finetune")
    for name in set(SHARING) - {"ewc_lora"}:
        assert same(first_task(name)[0], weights), name
    adapted, _ = first_task("finetune", LORA)
    assert same(first_task("ewc_lora", LORA)[0], adapted)


@pytest.mark.parametrize("name", PARTLY)
def test_the_first_task_depends_on_no_option_but_those_declared(first_task, name):
    parameters = set(inspect.signature(class_of(name)).parameters) - {"options"}
    changed = {option.partition("=")[0].removeprefix("strategy.") for option in CHANGED[name]}
    assert parameters - changed - set(class_of(name).shares_first_task) <= {"seed"}  # the top-level seed always matters
    options = ("data.examples_per_task=70",)
    assert same(first_task(name, *options), first_task(name, *options, *CHANGED[name]))


MEASURED = {
    name: class_of(name)
    for name in CONFIGURED
    if issubclass(class_of(name), QuadraticStrategy) and class_of(name) is not Merging
}


class Shuffle(L.Callback):
    """Changes the labels of the examples after the task has been trained."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def on_train_end(self, trainer, pl_module):
        x, y = self.data.tensors
        self.data.tensors = (x, (y + 1) % 3)


def importance_with(strategy: Strategy, module: Plain, shuffled: bool):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator)
    data = TensorDataset(x, y)
    before = [Shuffle(data)] if shuffled else []
    torch.manual_seed(0)
    trainer([*before, strategy]).fit(module, DataLoader(data, batch_size=8))
    return strategy.penalty_state().importance


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MEASURED),
        *(
            (name, {"fisher": fisher})
            for name in MEASURED
            if "ewc" in name and name != "ewc_dr"
            for fisher in ("sample", "predicted", "empirical", "weighted", "reversed")
        ),
    ],
    ids=str,
)
def test_the_importance_depends_on_labels_as_declared(name, options):
    """Other labels change the importance of exactly those strategies that declare that they need labels."""
    strategies = [MEASURED[name](lam=1.0, **options) for _ in range(2)]
    needs = strategies[0].needs_labels
    found = [importance_with(s, plain(name), shuffled) for s, shuffled in zip(strategies, (False, True), strict=True)]
    assert same(*found) != needs


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_strategy_that_needs_learner_refuses_another_module(name):
    """The other strategies train any module."""
    strategy = class_of(name)()
    t = trainer([strategy])
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.randint(3, (8,))), batch_size=4)
    if strategy.needs_learner:
        with pytest.raises(ConfigError, match=r"expected clbench\.learner\.Learner .* got Plain"):
            t.fit(Plain(), data)
    elif name not in ("joint",):
        t.fit(plain(name), data)


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_strategy_of_one_process_refuses_several(name):
    strategy, sequence = class_of(name)(), sequence_of()
    t = trainer([strategy], devices=2, strategy="ddp")
    t.datamodule = sequence[0]
    refused = pytest.raises(ConfigError, match=f"{type(strategy).__name__}: expected one process, got 2")
    with refused if strategy.one_process else nullcontext():
        Strategy.setup(strategy, t, learner_of(sequence), "fit")


def test_online_mas_is_per_process_and_shares_nothing():
    online, usual = MAS(online=True), MAS()
    assert online.per_process and online.shares_first_task is False
    assert not usual.per_process and usual.shares_first_task is True


# --- inheritance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base", [EWC, MAS, SI, L2, LwF, Strategy, QuadraticStrategy, RehearsalStrategy, LearnerStrategy]
)
def test_an_empty_subclass_inherits_all_declarations(base):
    class Mine(base):
        """Documented."""

    assert all(getattr(Mine, name) == getattr(base, name) for name in DECLARATIONS)


@pytest.mark.parametrize(
    "hook", sorted({n for n in dir(L.Callback) if n.startswith(("on_", "setup"))} | {"__init__", "helper"})
)
def test_a_subclass_with_a_hook_has_cautious_declarations(hook):
    """It shares no first task and reads labels, unless it declares otherwise."""
    mine = type("Mine", (EWC,), {hook: lambda self, *_: None})
    assert mine.shares_first_task is False
    assert mine.needs_labels is True
    assert mine.one_process is mine.per_process is (hook in BATCH_HOOKS)
    declared = type("Mine", (EWC,), {hook: lambda self, *_: None, **{name: getattr(EWC, name) for name in INHERITED}})
    assert all(getattr(declared, name) == getattr(EWC, name) for name in INHERITED)
    assert type("Later", (mine,), {}).shares_first_task is False
    assert type("Later", (declared,), {}).shares_first_task is True


def test_a_subclass_with_another_importance_may_read_labels():
    """It still shares the first task."""

    class Mine(EWC):
        def importance(self, trainer, pl_module):
            return super().importance(trainer, pl_module)

    assert Mine.shares_first_task is True
    assert Mine.needs_labels is True
    with pytest.raises(
        ConfigError, match="data=test: .* the importance of Mine reads labels.* declare needs_labels = False"
    ):
        Mine(data="test")


def test_a_mixin_with_a_hook_counts_at_any_place_among_the_bases():
    class Mixin(Strategy):
        def on_train_batch_end(self, *_): ...

    class Plain:
        def helper(self): ...

    for bases in ((EWC, Mixin), (Mixin, EWC), (EWC, Plain), (Plain, EWC)):
        assert type("Mine", bases, {}).shares_first_task is False, bases


def test_a_user_learner_strategy_is_of_one_process_by_default():
    class Mine(LearnerStrategy): ...

    assert Mine.one_process is True


def test_strategies_of_the_library_declare_their_cautious_values():
    """A declaration is missing if the value differs from the inherited one and is in no class body."""
    for cls in {base for name in CONFIGURED for base in class_of(name).__mro__ if issubclass(base, Strategy)} - {
        Strategy
    }:
        for name, cautious in INHERITED.items():
            if getattr(cls, name) == cautious.value != getattr(cls.__mro__[1], name):
                assert f"    {name}" in inspect.getsource(cls), (cls, name)
