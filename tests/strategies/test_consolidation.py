"""Which weights are measured and anchored: averaged, restored, frozen, grown, renamed and excluded ones, and at what cost."""

from __future__ import annotations

import copy
import weakref
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from clbench import EWC, L2, MAS, SI, OnlineEWC
from clbench.errors import ConfigError
from clbench.params import fingerprints, named_parameters, snapshot
from clbench.strategies import quadratic
from clbench.strategies.consolidation import LARGE, merged
from clbench.strategies.quadratic import Quadratic
from tests import references
from tests.conftest import trainer
from tests.strategies.test_penalty import data, loader


class Net(L.LightningModule):
    """A backbone and a head, trained with SGD."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


def fit(module, strategy, task=0, callbacks=(), **options):
    trainer([strategy, *callbacks], **options).fit(module, loader(task))


def double_loop(module, task=0):
    """Return the exact Fisher on a task by the slow loops in float64, with every parameter trainable."""
    net = copy.deepcopy(module).double().requires_grad_(True)
    x, y = data(task).tensors
    return references.fisher(net, x.double(), y)


def assert_close(importance, expected, names=None):
    for name in names or expected:
        torch.testing.assert_close(importance[name].double(), expected[name], rtol=1e-4, atol=1e-8, msg=name)


class AddsAtTheEnd(L.Callback):
    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.head.weight.add_(1.0)


LAST = {
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
    "average": WeightAveraging,
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "own": AddsAtTheEnd,
}


@pytest.mark.filterwarnings("ignore:Swapping|.*swap")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", LAST)
def test_the_weights_that_other_callbacks_leave_are_measured(name, first):
    module, strategy = Net(), EWC(lam=1.0)
    other = LAST[name]()
    trainer([strategy, other] if first else [other, strategy], max_epochs=4).fit(module, loader(0))
    assert fingerprints(strategy.penalty.anchor) == fingerprints(dict(module.named_parameters()))
    assert_close(strategy.penalty.importance, double_loop(module))


def test_weights_changed_after_the_measurement_are_an_error():
    class Late(Net):
        def on_train_end(self):
            AddsAtTheEnd().on_train_end(None, self)

    with pytest.raises(
        ConfigError, match=r"^head.weight and 0 more .* consolidate_at='manual' .* strategy.consolidate\("
    ):
        fit(Late(), EWC(lam=1.0))
    manual, module = EWC(lam=1.0, consolidate_at="manual"), Late()
    fit(module, manual)
    manual.consolidate(module, loader(0))
    assert_close(manual.penalty.importance, double_loop(module))


# --- manual -------------------------------------------------------------------------------------------------------------


def test_manual_consolidation_is_at_the_weights_that_are_loaded():
    module, strategy = Net(), OnlineEWC(lam=1.0, consolidate_at="manual")
    fit(module, strategy)
    assert strategy.penalty is None
    with torch.no_grad():
        module.head.weight.mul_(0.5)  # stands in for the best checkpoint
    strategy.consolidate(module, loader(0))
    assert torch.equal(strategy.penalty.anchor["head.weight"], module.head.weight)
    assert_close(strategy.penalty.importance, double_loop(module))
    fit(module, strategy, 1)


def test_a_fit_before_manual_consolidation_is_an_error():
    """This holds also for a strategy that was saved and loaded between the two."""
    module, strategy = Net(), EWC(lam=1.0, consolidate_at="manual")
    fit(module, strategy)
    loaded = EWC(lam=1.0, consolidate_at="manual")
    loaded.load_state_dict(strategy.state_dict())
    for each in (strategy, loaded):
        with pytest.raises(ConfigError, match=r"the last task is not consolidated.* Call strategy.consolidate\(module"):
            fit(module, each, 1)
        each.consolidate(module, loader(0))
        fit(module, each, 1)
        with pytest.raises(ConfigError, match="the last task is not consolidated"):
            fit(module, each, 2)


@pytest.mark.parametrize("make", [EWC, OnlineEWC, MAS])
def test_replace_measures_the_last_task_again(make):
    module, strategy = Net(), make(lam=1.0, keep_previous=True)
    once = make(lam=1.0)
    fit(module, strategy, 0)
    first = fingerprints(strategy.penalty.importance)
    fit(module, strategy, 1)
    assert fingerprints(strategy.previous.importance) == first
    reloaded = make(lam=1.0, keep_previous=True)
    reloaded.load_state_dict(strategy.state_dict())
    once.penalty = strategy.previous
    with torch.no_grad():
        module.head.weight.mul_(0.5)
    with pytest.raises(ConfigError, match="needs the examples"):
        strategy.consolidate(module, replace=True)
    once.consolidate(module, loader(1))
    for each in (strategy, reloaded):
        for _ in range(2):  # replacing twice is replacing once
            each.consolidate(module, loader(1), replace=True)
            assert fingerprints(each.penalty.importance) == fingerprints(once.penalty.importance)
            assert fingerprints(each.penalty.anchor) == fingerprints(once.penalty.anchor)


def test_replace_without_the_previous_penalty_names_the_remedy():
    module, strategy = Net(), EWC(lam=1.0)
    fit(module, strategy)
    before = strategy.penalty
    with pytest.raises(ConfigError, match="Construct the strategy with keep_previous=True"):
        strategy.consolidate(module, loader(0), replace=True)
    assert strategy.penalty is before


@pytest.mark.parametrize("make", [SI, L2])
def test_strategies_that_do_not_measure_refuse_manual(make):
    with pytest.raises(ConfigError, match=f"consolidate_at=manual: expected fit, because {make.__name__}"):
        make(consolidate_at="manual")


# --- frozen -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["auto", True, False])
def test_a_backbone_frozen_in_task_2_is_measured_on_task_2(frozen):
    """With ``frozen=False`` it keeps the importance of task 1."""
    module, strategy = Net(), EWC(lam=1.0, frozen=frozen)
    fit(module, strategy)
    first = snapshot(strategy.penalty.importance)
    module.backbone.requires_grad_(False)
    fit(module, strategy, 1)
    assert not any(p.requires_grad for p in module.backbone.parameters())
    second = double_loop(module, 1)
    for name, f in strategy.penalty.importance.items():
        added = second[name] if frozen or name.startswith("head") else 0
        torch.testing.assert_close(f.double(), first[name].double() + added, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("make", [partial(MAS, online=True), partial(MAS, form="local"), SI, L2])
def test_every_strategy_works_with_a_frozen_backbone(make):
    module, strategy = Net(), make(lam=0.1)
    fit(module, strategy)
    first = snapshot(strategy.penalty.importance)
    module.backbone.requires_grad_(False)
    fit(module, strategy, 1)
    grown = (strategy.penalty.importance["backbone.0.weight"] - first["backbone.0.weight"]).abs().sum() > 0
    assert grown == isinstance(strategy, MAS)  # a weight that does not move has no path, and L2 does not sum


def test_adapters_over_a_backbone_never_trained_cost_no_bytes():
    module, strategy = Net(), EWC(lam=1.0)
    module.backbone.requires_grad_(False)
    for task in range(2):
        fit(module, strategy, task)
    assert strategy.penalty.importance.keys() == {"head.weight", "head.bias"}
    assert strategy.cost()["bytes"] == 2 * 4 * (8 * 3 + 3)
    everything = EWC(lam=1.0, frozen=True)
    fit(module, everything)
    assert_close(everything.penalty.importance, double_loop(module))


def test_a_backbone_trained_without_a_measurement_warns_once():
    module, strategy = Net(), EWC(lam=1.0)
    module.backbone.requires_grad_(False)
    fit(module, strategy)
    module.backbone.requires_grad_(True)
    loaded = EWC(lam=1.0)
    loaded.load_state_dict(strategy.state_dict())
    with pytest.warns(UserWarning, match="backbone.0.bias and 1 more parameters were frozen .* Use frozen=True"):
        fit(copy.deepcopy(module), loaded, 1)
    with pytest.warns(UserWarning, match="backbone.0.bias and 1 more parameters were frozen .* Use frozen=True"):
        fit(module, strategy, 1)
    fit(module, strategy, 2)  # a second warning would be an error


@pytest.mark.filterwarnings("ignore:.*will be .* trained|.*BackboneFinetuning|.*optimizer")
def test_a_backbone_that_is_unfrozen_inside_a_fit_is_measured():
    module, strategy = Net(), EWC(lam=1.0)
    fit(module, strategy, 0, [BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)], max_epochs=3)
    assert_close(strategy.penalty.importance, double_loop(module))


class Refreezes(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.backbone.requires_grad_(trainer.current_epoch == 1)


def test_a_parameter_that_trained_in_some_epoch_is_measured():
    """It is frozen at the start and at the end of the fit."""
    module, strategy = Net(), EWC(lam=1.0)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    module.backbone.requires_grad_(False)
    fit(module, strategy, 0, [Refreezes()], max_epochs=3)
    assert_close(strategy.penalty.importance, double_loop(module))


# --- growth -------------------------------------------------------------------------------------------------------------


def grow(module, classes):
    old, module.head = module.head, nn.Linear(8, classes)
    with torch.no_grad():
        module.head.weight[: len(old.weight)], module.head.bias[: len(old.bias)] = old.weight, old.bias


@pytest.mark.parametrize("make", [EWC, OnlineEWC, MAS, SI])
def test_old_rows_of_a_grown_head_are_penalised_new_ones_free(make):
    module, strategy = Net(), make(lam=1.0, grow="rows")
    fit(module, strategy)
    old = {name: (f.clone(), strategy.penalty.anchor[name].clone()) for name, f in strategy.penalty.importance.items()}
    grow(module, 5)
    with torch.no_grad():
        module.head.weight.add_(0.1)
    module.training_step = lambda batch, batch_idx: 0 * module(batch[0]).sum()
    f, a = old["head.weight"]
    expected = nn.Parameter(module.head.weight.detach().clone())
    expected.grad = torch.zeros(5, 8)
    expected.grad[:3] = f * (expected[:3].detach() - a) * strategy.strength
    new_rows = expected[3:].detach().clone()
    fit(module, strategy, 1, limit_train_batches=1)
    torch.optim.SGD([expected], 0.1).step()
    assert torch.equal(module.head.weight, expected)
    assert torch.equal(module.head.weight[3:], new_rows)
    assert not torch.equal(module.head.weight[:3], a + 0.1)


def test_a_grown_head_is_merged_exactly():
    """The result equals the sum over the tasks: old rows complete the square, and new rows have the second task alone."""
    module, strategy = Net(), EWC(lam=1.0, grow="rows")
    fit(module, strategy)
    f1, a1 = strategy.penalty.importance["head.weight"].clone(), strategy.penalty.anchor["head.weight"].clone()
    grow(module, 5)
    fit(module, strategy, 1)
    f2, a2 = double_loop(module, 1)["head.weight"], module.head.weight.detach()
    f, a = strategy.penalty.importance["head.weight"], strategy.penalty.anchor["head.weight"]
    assert_close({"f": f[:3]}, {"f": f1.double() + f2[:3]})
    assert_close({"f": f[3:]}, {"f": f2[3:]})
    assert torch.equal(a[3:], a2[3:])
    assert_close({"a": f[:3] * a[:3]}, {"a": f1.double() * a1 + f2[:3] * a2[:3]})


def test_a_resized_embedding_keeps_its_old_rows():
    class Words(Net):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(6, 4)

        def forward(self, x):
            return super().forward(self.words(x.abs().long().clamp(max=5)).mean(1))

    module, strategy = Words(), EWC(lam=1.0, grow="rows")
    fit(module, strategy)
    first = strategy.penalty.importance["words.weight"].clone()
    old, module.words = module.words, nn.Embedding(9, 4)
    with torch.no_grad():
        module.words.weight[:6] = old.weight
    fit(module, strategy, 1)
    second = double_loop(module, 1)["words.weight"]
    second[:6] += first
    assert_close(strategy.penalty.importance, {"words.weight": second})
    assert first.sum() > 0


@pytest.mark.parametrize(("classes", "how"), [(5, None), (2, "rows")])
def test_a_shape_that_changed_is_refused_with_advice_that_works(classes, how):
    module, strategy = Net(), EWC(lam=1.0, grow=how)
    fit(module, strategy)
    module.head = nn.Linear(8, classes)
    module.training_step = lambda batch, batch_idx: module(batch[0]).square().mean()
    with pytest.raises(
        ConfigError, match=r"^head.weight: expected shape \(3, 8\).*strategy.exclude = \['head.weight'\]"
    ):
        fit(module, strategy, 1)
    strategy.exclude = ["head.weight", "head.bias"]
    fit(module, strategy, 1)
    assert strategy.penalty.importance.keys() == {"backbone.0.weight", "backbone.0.bias"}


# --- names --------------------------------------------------------------------------------------------------------------


def compiled(net):
    return torch.compile(net, backend="eager")


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


WRAPPERS = {"compile": compiled, "in_place": compiled_in_place, "parallel": nn.DataParallel, "nothing": lambda net: net}


@pytest.mark.parametrize("when", [0, 1])
def test_wrappers_do_not_change_the_names_of_parameters(when):
    """The wrapper is added before the first or before the second task."""
    ends = {}
    for name, wrap in WRAPPERS.items():
        module, strategy = Net(), EWC(lam=5.0)
        for task in range(2):
            if task == when:
                module.backbone = wrap(module.backbone)
            fit(module, strategy, task)
        assert list(strategy.penalty.importance) == [n for n, _ in Net().named_parameters()]
        ends[name] = fingerprints(named_parameters(module)), fingerprints(strategy.penalty.importance)
    assert all(end == ends["nothing"] for end in ends.values())


def test_nested_wrappers_are_stripped():
    class Ddp(nn.parallel.DistributedDataParallel):  # the real one needs a process group
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    inner = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"module": nn.Linear(2, 2)}))
    expected = [n for n, _ in nn.Sequential(inner).named_parameters()]
    assert list(named_parameters(nn.Sequential(compiled(Ddp(inner))))) == expected
    assert list(named_parameters(nn.Sequential(Ddp(nn.DataParallel(compiled(inner)))))) == expected
    assert [n.removeprefix("0.") for n in expected] == list(named_parameters(Ddp(inner)))


def test_a_parameter_that_is_gone_is_an_error_with_names():
    module, strategy = Net(), EWC(lam=1.0)
    fit(module, strategy)
    weight_norm(module.head)
    with pytest.raises(
        ConfigError, match=r"1 parameters .* not in the module: head.weight. The module has head.parametriz"
    ):
        fit(module, strategy, 1)
    strategy.exclude = ["head.weight"]  # the message advises it
    for task in (1, 2):
        fit(module, strategy, task)
    assert "head.parametrizations.weight.original1" in strategy.penalty.importance
    loaded = EWC(lam=1.0, exclude=["head.weight"])
    loaded.load_state_dict(strategy.state_dict())
    fit(module, loaded, 3)
    with pytest.raises(ConfigError, match="exclude='head.weight': expected a pattern that matches a parameter"):
        fit(module, EWC(lam=1.0, exclude=["head.weight"]), 3)


def test_patterns_may_change_between_tasks():
    """What is excluded later is forgotten. What is included later has the importance of the tasks since then."""
    module, strategy = Net(), EWC(lam=1.0, exclude="*.bias")
    fit(module, strategy)
    first = snapshot(strategy.penalty.importance)
    strategy.exclude = ["head.*"]
    fit(module, strategy, 1)
    second = double_loop(module, 1)
    assert strategy.penalty.importance.keys() == {"backbone.0.weight", "backbone.0.bias"}
    assert_close(strategy.penalty.importance, {"backbone.0.bias": second["backbone.0.bias"]})
    both = first["backbone.0.weight"].double() + second["backbone.0.weight"]
    assert_close(strategy.penalty.importance, {"backbone.0.weight": both})


# --- bytes --------------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that exist, and their largest number."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.sizes:
                self.sizes[key] = tensor.untyped_storage().nbytes()
                self.now += self.sizes[key]
                weakref.finalize(tensor.untyped_storage(), self.freed, key)
        self.peak = max(self.peak, self.now)
        return out

    def freed(self, key):
        self.now -= self.sizes.pop(key)


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 1200), nn.Linear(1200, 1200))
        self.head = nn.Linear(1200, 3)


@pytest.mark.parametrize("make", [EWC, OnlineEWC])
def test_the_peak_is_16_bytes_per_parameter_above_plain_training(make):
    """One layer has nearly all parameters. Both tasks are measured, and a margin of 0.5 bytes is for activations."""
    peaks, size = [], sum(p.numel() for p in Wide().parameters())
    for strategy in (L.Callback(), make(lam=1e-3)):
        module, live = Wide(), LiveBytes()
        with live:
            for task in range(2):
                trainer([strategy]).fit(module, DataLoader(data(task, 8), 4))
        peaks.append(live.peak / size)
    assert peaks[1] - peaks[0] <= 16.5
    assert strategy.cost()["bytes"] == 8 * size


def add_to_half(old, new):
    """Merge as a user's strategy may: halve the whole penalty of earlier tasks, with its constant."""
    return quadratic.add(Quadratic({n: f / 2 for n, f in old.importance.items()}, old.anchor, old.constant / 2), new)


@pytest.mark.parametrize("merge", [quadratic.add, add_to_half])
def test_merging_in_parts_equals_merging_whole(merge):
    """A parameter of more than ``LARGE`` elements is merged a few rows at a time."""
    generator = torch.Generator().manual_seed(0)
    anchors = [{"w": torch.randn(300, 200, generator=generator)} for _ in range(3)]
    importances = [{"w": torch.rand(300, 200, generator=generator)} for _ in range(3)]
    assert anchors[0]["w"].numel() > 2 * LARGE
    ends = []
    for elementwise in (True, False):
        parts: list = []
        for importance, params in zip(importances, anchors, strict=True):
            parts = [merged(parts, snapshot(importance), params, merge, elementwise)]
        ends.append(parts[0])
    assert torch.equal(ends[0].importance["w"], ends[1].importance["w"])
    assert torch.equal(ends[0].anchor["w"], ends[1].anchor["w"])
    torch.testing.assert_close(ends[0].constant, ends[1].constant)


def test_a_fingerprint_differs_if_one_bit_differs():
    p = torch.randn(3, 4)
    q = p.clone()
    q[1, 2] = torch.nextafter(q[1, 2], torch.tensor(9.0))
    assert fingerprints({"a": p}) == fingerprints({"a": p.clone()}) != fingerprints({"a": q})
    assert fingerprints({"a": torch.ones(2, dtype=torch.complex64), "b": torch.ones((), dtype=torch.bfloat16)})


@pytest.mark.parametrize("make", [EWC, OnlineEWC, MAS, SI, L2])
def test_a_penalty_on_the_host_gives_the_same_weights(make):
    weights = []
    for store in (None, "cpu"):
        module, strategy = Net(), make(lam=10.0, store=store)
        for task in range(3):
            fit(module, strategy, task)
        assert {t.device.type for t in strategy.penalty.importance.values()} == {"cpu"}
        weights.append(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


@pytest.mark.parametrize("make", [EWC, OnlineEWC, MAS])
def test_an_importance_in_16_bits_has_exact_anchors(make):
    penalties = []
    for store in (None, "bfloat16"):
        module, strategy = Net(), make(lam=0.0, store=store)
        for task in range(2):
            fit(module, strategy, task)
        penalties.append(strategy.penalty)
    exact, coarse = penalties
    for name, f in exact.importance.items():
        assert coarse.importance[name].dtype == torch.bfloat16 and coarse.anchor[name].dtype == torch.float32
        torch.testing.assert_close(coarse.importance[name].float(), f, rtol=2**-7, atol=0)  # rounded after each task
    params = {name: p.detach() + 0.1 for name, p in module.named_parameters()}
    for name, g in coarse.half_gradient(params).items():
        torch.testing.assert_close(g, exact.half_gradient(params)[name], rtol=0.02, atol=1e-4)


def test_the_anchor_of_16_bit_parameters_is_exact():
    importance = {"w": torch.rand(4)}
    params = {"w": torch.randn(4, dtype=torch.bfloat16)}
    q = merged([], importance, params, quadratic.add, True, "bfloat16")
    assert q.anchor["w"].dtype == torch.bfloat16 and torch.equal(q.anchor["w"], params["w"])
    with pytest.raises(ConfigError, match="store=half: expected one of cpu, bfloat16"):
        EWC(store="half")
