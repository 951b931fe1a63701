"""Synaptic intelligence. tests/test_train.py checks that a stopped run resumes bit-identically, for every strategy."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clbench import SI, RWalk
from clbench.errors import ConfigError, Unstable
from clbench.params import snapshot
from clbench.strategies import Strategy
from clbench.strategies.si import PathIntegral
from tests.conftest import trainer
from tests.strategies.test_penalty import Plain, assert_same, learn
from tests.training.test_checkpointing import Save

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
}

DECAYING = partial(
    torch.optim.SGD, weight_decay=1.0
)  # moves weights against the loss gradient, which momentum and Adam rarely do


class Net(L.LightningModule):
    """A body with a head for each of two tasks, in float64."""

    def __init__(self, optimizer=OPTIMIZERS["sgd"]):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
        self.double()
        self.task = 0
        self.optimizer = optimizer

    def loss(self, batch):
        return cross_entropy(self.heads[self.task](self.body(batch[0]).tanh()), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def examples(task, n=32):
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(n, 4, generator=generator, dtype=torch.double)
    return x, (x @ torch.randn(4, 3, generator=generator, dtype=torch.double)).argmax(1)


def batches(task, size=8):
    return DataLoader(TensorDataset(*examples(task)), batch_size=size)


def fit(module, strategy, task=0, size=8, **options):
    """Learn one task and return the weights at its start."""
    start = snapshot(dict(module.named_parameters()))
    trainer([strategy], **{"precision": "64-true", **options}).fit(module, batches(task, size))
    return start


def sums_after_one_task(strategy, start):
    """Return the path integrals omega = Omega (Delta^2 + xi) after the first task."""
    importance, anchor, _ = strategy.penalty
    return {n: f * ((anchor[n] - start[n]) ** 2 + strategy.damping) for n, f in importance.items()}


def by_hand(optimizer, lam, tasks, epochs, damping=0.1):
    """Compute SI over ``tasks``, parameter by parameter. Return importance and anchor after the last task."""
    module = Net(optimizer)
    params = dict(module.named_parameters())
    importance = {n: torch.zeros_like(p) for n, p in params.items()}
    anchor = snapshot(params)
    for task in range(tasks):
        steps, start = module.optimizer(module.parameters()), snapshot(params)
        omega = {n: torch.zeros_like(p) for n, p in params.items()}
        for _ in range(epochs):
            for batch in batches(task):
                grads = torch.autograd.grad(module.loss(batch), list(params.values()), allow_unused=True)
                before = snapshot(params)
                for (n, p), g in zip(params.items(), grads, strict=True):
                    p.grad = None if g is None else g + lam * importance[n] * (p.detach() - anchor[n])
                steps.step()
                for (n, p), g in zip(params.items(), grads, strict=True):
                    if g is not None:
                        omega[n] += -g * (p.detach() - before[n])
        for n, p in params.items():
            importance[n] = importance[n] + omega[n] / ((p.detach() - start[n]) ** 2 + damping)
        anchor = snapshot(params)
    return importance, anchor


def test_omega_sums_to_the_decrease_of_the_loss():
    """This is true for small steps on all examples."""
    module, strategy = Net(partial(torch.optim.SGD, lr=1e-2)), SI(lam=1.0)
    first = module.loss(examples(0)).item()
    start = fit(module, strategy, size=32, max_epochs=300)
    decrease = first - module.loss(examples(0)).item()
    assert decrease > 0.3
    total = sum(omega.sum().item() for omega in sums_after_one_task(strategy, start).values())
    assert total == pytest.approx(decrease, rel=0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_tasks_equal_a_loop_with_omega_of_the_task_loss(name):
    """The penalty does not count in omega."""
    module, strategy = Net(OPTIMIZERS[name]), SI(lam=5.0)
    for task in range(2):
        fit(module, strategy, task, max_epochs=3)
    importance, anchor = by_hand(OPTIMIZERS[name], lam=5.0, tasks=2, epochs=3)
    assert importance.keys() == strategy.penalty.importance.keys()
    for n, expected in importance.items():
        torch.testing.assert_close(strategy.penalty.importance[n], expected, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(strategy.penalty.anchor[n], anchor[n], rtol=1e-9, atol=1e-13)


def test_a_saved_path_integral_does_not_change_with_later_steps():
    p = nn.Parameter(torch.ones(2, dtype=torch.double))
    path, p.grad = PathIntegral({"p": p}), torch.tensor([1.0, 2.0], dtype=torch.double)
    states = []
    for _ in range(2):
        path.begin({"p": p})
        with torch.no_grad():
            p.sub_(0.5)
        path.end()
        states.append(path.state_dict())
    assert [state["sums"]["p"].tolist() for state in states] == [[0.5, 1.0], [1.0, 2.0]]
    assert states[0]["start"]["p"].tolist() == [1, 1]


def test_damping_is_added_to_the_squared_change():
    importances = []
    for damping in (0.1, 0.5):
        module, strategy = Net(), SI(lam=1.0, damping=damping)
        start = fit(module, strategy)
        importances.append(strategy.penalty.importance)
    change = {n: p.detach() - start[n] for n, p in module.named_parameters()}
    for n, d in change.items():
        torch.testing.assert_close(importances[0][n] * (d**2 + 0.1), importances[1][n] * (d**2 + 0.5))


def test_negative_importance_is_kept_unless_it_is_clamped():
    """The paper keeps it."""
    modules, strategies = [], (SI(lam=3.0), SI(lam=3.0, clamp=True))
    for strategy in strategies:
        modules.append(Net(partial(DECAYING, lr=0.1)))
        fit(modules[-1], strategy, max_epochs=3)
    paper, clamped = (s.penalty.importance for s in strategies)
    assert min(f.min() for f in paper.values()) < 0 < max(f.max() for f in paper.values())
    assert_same(clamped, {n: f.clamp(min=0) for n, f in paper.items()})
    with torch.no_grad():
        for p in modules[0].parameters():
            p.add_(0.5)
    expected = 3.0 / 2 * sum((0.5**2 * f).sum() for f in paper.values())
    torch.testing.assert_close(strategies[0].value(modules[0]), expected)


def test_clamp_cuts_each_task_or_their_sum():
    """The importances of three tasks are given, so that the sums can be computed by hand."""
    omegas = [
        torch.tensor([1.0, -1.0, 2.0, -1.0]),
        torch.tensor([-3.0, 2.0, -1.0, -2.0]),
        torch.tensor([1.0, 1.0, 1.0, 1.0]),
    ]
    expected = {
        "none": [-1.0, 2.0, 2.0, -2.0],
        "task": [2.0, 3.0, 3.0, 1.0],
        "sum": [1.0, 3.0, 2.0, 1.0],
    }
    for clamp, wanted in expected.items():
        module, si = nn.Linear(4, 1, bias=False), SI(lam=1.0, clamp=clamp)
        for omega in omegas:
            si._path = PathIntegral({"weight": module.weight})
            si._path.sums["weight"] += 0.1 * omega  # no weight moves, so the importance is sum / damping
            si._consolidate(module, lambda si=si, module=module: si.importance(None, module))
        assert si.penalty.importance["weight"].tolist() == [pytest.approx(wanted, abs=1e-6)], clamp


@pytest.mark.parametrize(("old", "new"), [("false", "none"), ("true", "task")])
def test_the_older_values_of_clamp_mean_the_same(run, old, new):
    options = ("strategy=si", "epochs=1", "data.tasks=2", "optimizer=sgd", "lr=0.1")
    found = [run(*options, f"strategy.clamp={value}", folder=value) for value in (old, new)]
    assert found[0]["accuracy_matrix"] == found[1]["accuracy_matrix"]


def test_negative_importance_pushes_weights_from_their_anchor():
    module, free, strategy = Net(partial(DECAYING, lr=0.1)), Net(), SI(lam=1.0)
    fit(module, strategy, max_epochs=3)
    module.optimizer = OPTIMIZERS["sgd"]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5)
    free.load_state_dict(module.state_dict())
    pull = {n: f * 0.5 for n, f in strategy.penalty.importance.items()}
    assert any((g < 0).any() for g in pull.values())
    fit(module, strategy, task=1, limit_train_batches=1)
    fit(free, Strategy(), task=1, limit_train_batches=1)
    for n, p in free.named_parameters():
        torch.testing.assert_close(module.get_parameter(n).detach() - p.detach(), -0.1 * pull[n])


def test_accumulated_gradients_are_one_step():
    importances = []
    for size, accumulate in ((8, 1), (2, 4)):
        strategy = SI(lam=1.0)
        fit(Net(), strategy, size=size, accumulate_grad_batches=accumulate)
        importances.append(strategy.penalty.importance)
    for n, f in importances[0].items():
        torch.testing.assert_close(importances[1][n], f)


def test_clipping_changes_the_movement_and_not_the_gradient():
    module, strategy = Net(), SI(lam=1.0)
    grads = torch.autograd.grad(module.loss(examples(0)), list(module.parameters()), allow_unused=True)
    names = dict(module.named_parameters())
    squares = {n: g.square() for n, g in zip(names, grads, strict=True) if g is not None}
    norm = sum(g.sum() for g in squares.values()).sqrt()
    start = fit(module, strategy, size=32, gradient_clip_val=0.05)
    omega = sums_after_one_task(strategy, start)
    for n, square in squares.items():
        torch.testing.assert_close(omega[n], 0.1 * 0.05 / norm * square, rtol=1e-4, atol=1e-12)


def test_every_step_of_a_batch_counts_under_manual_optimisation():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(3):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

    manual, epochs = SI(lam=1.0), SI(lam=1.0)
    fit(Manual(), manual, size=32)
    fit(Net(), epochs, size=32, max_epochs=3)
    assert_same(manual.penalty.importance, epochs.penalty.importance)


def test_unused_heads_and_frozen_parameters_have_no_importance():
    """An unused head has zeros, and a frozen parameter is not listed."""
    module, strategy = Net(OPTIMIZERS["adam"]), SI(lam=1.0)
    module.body.bias.requires_grad_(False)
    start = fit(module, strategy)
    assert strategy.penalty.importance.keys() == start.keys() - {"body.bias"}
    assert torch.equal(strategy.penalty.importance["heads.1.weight"], torch.zeros(3, 8, dtype=torch.double))
    assert torch.equal(module.heads[1].weight, start["heads.1.weight"])
    fit(module, strategy, task=1)
    assert strategy.penalty.importance["heads.1.weight"].abs().sum() == 0  # the module still uses head 0
    assert strategy.penalty.importance["heads.0.weight"].abs().sum() > 0


def test_a_new_parameter_has_the_importance_of_its_own_task():
    """The other parameters have the sum over the tasks."""
    module, strategy = Net(), SI(lam=0.0)
    fit(module, strategy)
    first = snapshot(strategy.penalty.importance)
    module.heads.append(nn.Linear(8, 3).double())
    module.task = 2
    alone = SI(lam=0.0)
    start = snapshot(dict(module.named_parameters()))
    fit(module, strategy, task=1)
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.copy_(start[n])
    fit(module, alone, task=1)
    for n, f in strategy.penalty.importance.items():
        torch.testing.assert_close(f, alone.penalty.importance[n] + first.get(n, 0.0))
    assert strategy.penalty.importance["heads.2.weight"].abs().sum() > 0


class Thaw(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.body.weight.requires_grad_(True)


def test_an_unfrozen_parameter_counts_from_its_first_step():
    """Its importance is that of a task which consists of the second epoch. The other sums cover both epochs."""
    module, strategy = Net(), SI(lam=1.0)
    module.body.weight.requires_grad_(False)
    trainer([strategy, Thaw()], precision="64-true", max_epochs=2).fit(module, batches(0))
    apart, second = Net(), SI(lam=0.0)
    apart.body.weight.requires_grad_(False)
    fit(apart, SI(lam=1.0))
    apart.body.weight.requires_grad_(True)
    fit(apart, second)
    assert_same(dict(module.named_parameters()), dict(apart.named_parameters()))
    both, late = strategy.penalty.importance, second.penalty.importance
    assert torch.equal(both["body.weight"], late["body.weight"])
    assert both["body.weight"].any()
    assert not torch.equal(both["body.bias"], late["body.bias"])


class ThawInTheSecondEpoch(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch >= 1:
            pl_module.body.weight.requires_grad_(True)


@pytest.mark.parametrize("kind", [SI, partial(RWalk, interval=3)])
def test_a_resumed_task_keeps_the_sums_of_unfrozen_parameters(tmp_path, kind):
    """They are frozen again when the task is resumed, until the next epoch starts. RWalk is inside an interval."""
    importances = []
    for options in ({}, {"ckpt_path": tmp_path / "a.ckpt", "weights_only": True}):
        module, strategy = Net(), kind(lam=1.0)
        module.body.weight.requires_grad_(False)
        callbacks = [strategy, ThawInTheSecondEpoch(), Save(tmp_path / "a.ckpt")]
        trainer(callbacks, precision="64-true", max_epochs=4).fit(module, batches(0), **options)
        importances.append(strategy.penalty.importance)
    assert_same(*importances)
    assert importances[0]["body.weight"].any()


def test_only_penalised_parameters_are_followed():
    module, everything, some = Net(), SI(lam=1.0), SI(lam=1.0, include=["body.*"], exclude=["*.bias"])
    fit(module, everything)
    fit(Net(), some)
    assert_same(some.penalty.importance, {"body.weight": everything.penalty.importance["body.weight"]})


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_lam_0_is_fine_tuning_bit_for_bit(optimizer):
    """The module has an unused head, and the state of its optimizer is carried over to the next task."""
    module = learn(Plain(optimizer, 1e-2), SI(lam=0.0), carry=True)
    assert_same(module, learn(Plain(optimizer, 1e-2), Strategy(), carry=True))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_the_first_task_is_learned_as_without_it(optimizer):
    module = learn(Plain(optimizer, 1e-2), SI(lam=1e3), tasks=1)
    assert_same(module, learn(Plain(optimizer, 1e-2), Strategy(), tasks=1))


def test_state_dict_restores_the_strategy():
    module, first, second = Net(), SI(lam=2.0), SI(lam=2.0)
    fit(module, first)
    second.load_state_dict(first.state_dict())
    weights = snapshot(module.state_dict())
    after = []
    for strategy in (first, second):
        module.load_state_dict(weights)
        fit(module, strategy, task=1)
        after.append({**module.state_dict(), **{f"importance {n}": f for n, f in strategy.penalty.importance.items()}})
    assert_same(*after)


def test_under_bf16_omega_is_summed_in_full_precision():
    module, strategy = Net().float(), SI(lam=1.0)
    data = DataLoader(TensorDataset(examples(0)[0].float(), examples(0)[1]), batch_size=32)
    first = module.loss(data.dataset.tensors).item()
    start = snapshot(dict(module.named_parameters()))
    module.optimizer = partial(torch.optim.SGD, lr=1e-2)
    trainer([strategy], precision="bf16-mixed", max_epochs=100).fit(module, data)
    assert {f.dtype for f in strategy.penalty.importance.values()} == {torch.float32}
    decrease = first - module.loss(data.dataset.tensors).item()
    total = sum(omega.sum().item() for omega in sums_after_one_task(strategy, start).values())
    assert total == pytest.approx(decrease, rel=0.03)


@pytest.mark.parametrize("kind", [SI, RWalk])
def test_a_step_that_the_loss_scaler_skips_does_not_count(kind):
    module, strategy = Net().float(), kind(lam=1.0)
    data = DataLoader(TensorDataset(examples(0)[0].float(), examples(0)[1]), batch_size=8)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1))
    start = snapshot(dict(module.named_parameters()))
    trainer([strategy], precision=None, plugins=[plugin]).fit(module, data)  # every step overflows
    assert_same(snapshot(dict(module.named_parameters())), start)
    assert all(not f.any() for f in strategy.penalty.importance.values())


def test_no_step_is_followed_after_a_task():
    strategy = SI(lam=1.0)
    fit(Net(), strategy)
    assert strategy._path.sums == {}
    assert strategy.cost()["bytes"] == 2 * 8 * sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf"), "a"])
def test_damping_is_finite_and_positive_and_clamp_is_known(damping):
    with pytest.raises(
        ConfigError, match=f"^damping={damping}: expected a finite number > 0, got .* The paper uses 0.1."
    ):
        SI(lam=1.0, damping=damping)
    with pytest.raises(ConfigError, match="^clamp=yes: expected one of task, sum, none, got 'yes'"):
        SI(lam=1.0, clamp="yes")


@pytest.mark.filterwarnings("ignore:SGD with lr=")
def test_divergence_with_negative_importance_names_remedies():
    with pytest.raises(Unstable, match=r"Lower lam or lr, .*, or clamp=task, because importance is down to -"):
        learn(Plain(DECAYING), SI(lam=1e8), tasks=2, max_epochs=30)
