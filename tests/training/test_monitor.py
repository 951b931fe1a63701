"""The penalty monitor: a run for each warning, and no warnings with the default options."""

from __future__ import annotations

import csv
import math
import re
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, PenaltyMonitor
from clbench.errors import ConfigError, Unstable
from clbench.strategies import L2, QuadraticStrategy, Strategy
from clbench.strategies.norms import gradient_norms
from clbench.strategies.penalty_state import PenaltyState, sgd_bound
from clbench.strategies.quadratic import quadratic
from tests.conftest import replace_in, trainer

SHORT = ("data.tasks=2", "net.hidden=[16]", "epochs=1", "logger=none", "checkpoints=none")
LOG = "logs/from_task_0/metrics.csv"
PENALISE = ("ewc", "online_ewc", "mas", "si", "l2")


def kinds(result):
    return [warning["kind"] for warning in result["warnings"]]


@pytest.mark.parametrize(
    ("kind", "says", "options"),
    [
        ("penalty_negligible", r"Raise lam=1e-09", ["strategy=ewc", "lam=1e-9"]),
        ("penalty_negligible", r"so the run is equivalent to fine-tuning", ["strategy=online_ewc", "gamma=0"]),
        ("penalty_dominates", r"Lower lam=1e\+10", ["strategy=ewc", "lam=1e10"]),
        ("importance_zero", "include/exclude patterns", ["strategy=ewc", "strategy.include=['*.heads.1.*']"]),
        ("importance_in_one_layer", "net.head.heads.0 has 100.00%", ["strategy=mas", "lr=1e6"]),
        (
            "importance_negative",
            "strategy.clamp=task",
            ["strategy=si", "optimizer=sgd", "+optimizer.make.weight_decay=1"],
        ),
        (
            "class_incremental",
            "accuracy of about 0.50 .1 of 2 tasks; chance is 0.05",
            ["strategy=ewc", "scenario=class"],
        ),
    ],
)
def test_a_warning_names_the_problem_and_its_remedy(run, tmp_path, capsys, kind, says, options):
    """It is in the terminal, the log and metrics.json."""
    result = run(*SHORT, *options)
    assert kinds(result).count(kind) == 1
    (text,) = [w["text"] for w in result["warnings"] if w["kind"] == kind]
    assert re.search(says, text)
    shown = capsys.readouterr().out
    assert f"warning: {text}" in shown
    assert text[:60] in (tmp_path / "run/train.log").read_text(encoding="utf-8")


def test_a_warning_names_python_arguments_in_python():
    with pytest.warns(UserWarning, match="With SI, use clamp=task or a lower learning rate"):
        learn(CustomModule(nn.Linear(4, 3)), Constant(-1.0), PenaltyMonitor())


def test_a_step_of_sgd_beyond_its_bound_gives_an_early_warning(run, tmp_path, capsys):
    """The warning comes before the weights diverge."""
    with pytest.raises(Unstable):
        run(*SHORT, "strategy=ewc", "optimizer=sgd", "lam=1e7")
    assert "warning: SGD with lr=0.01 and lam=1e+07 is unstable" in capsys.readouterr().out
    assert "the steps are stable only below 2. Use lam below" in (tmp_path / "run/train.log").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.99},
    ],
)
def test_sgd_diverges_just_above_its_bound_and_not_just_below(options):
    for factor, stable in ((0.98, True), (1.02, False)):
        w = torch.ones(1, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1.0, **options)
        curvature = factor * sgd_bound(optimizer.param_groups[0])
        for _ in range(4000):
            w.grad = (curvature * w).detach()
            optimizer.step()
        assert (abs(w.item()) < 1) == stable, (options, factor, w.item())


def test_adam_has_no_bound(run):
    assert kinds(run(*SHORT, "strategy=ewc", "lam=1e5", "optimizer=adam")) == []


def test_a_warning_is_given_once_even_in_a_resumed_run(run, tmp_path, capsys):
    options = (*SHORT[1:4], "data.tasks=3", "strategy=ewc", "lam=1e-9", "scenario=class")
    whole = run(*options)
    assert kinds(whole) == ["class_incremental", "penalty_negligible"]
    assert [w["task"] for w in whole["warnings"]] == [0, 1]
    (tmp_path / "run/checkpoints/task_2.ckpt").unlink()
    replace_in(tmp_path / "run/metrics.json", '"complete"', '"running"')
    capsys.readouterr()
    assert run(*options)["warnings"] == whole["warnings"]
    assert "warning:" not in capsys.readouterr().out


def test_lam_0_gives_no_warning(run):
    assert kinds(run(*SHORT, "strategy=ewc", "lam=0")) == []


def test_the_monitor_changes_no_number(run, monkeypatch):
    options = (*SHORT, "strategy=ewc", "log_every=1")
    examined = run(*options, folder="examined")
    for hook in ("on_train_start", "on_before_optimizer_step", "on_fit_end"):
        monkeypatch.delattr(PenaltyMonitor, hook)
    assert run(*options, folder="not")["accuracy_matrix"] == examined["accuracy_matrix"]


# --- with a custom module ----------------------------------------------------------------------------------------


class CustomModule(L.LightningModule):
    """A module that does not use clbench."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Detached(nn.Sequential):
    """A body that does not learn, because its features are detached by mistake."""

    def forward(self, x):
        return self[1](self[0](x).detach())


def learn(module, *callbacks, tasks=1, scale=1.0):
    for task in range(tasks):
        generator = torch.Generator().manual_seed(task)
        x = scale * torch.randn(64, 4, generator=generator)
        y = (x @ torch.randn(4, 3, generator=generator)).argmax(1)
        trainer(list(callbacks), max_epochs=2).fit(module, DataLoader(TensorDataset(x, y), 8))


def test_a_custom_module_gets_python_warnings():
    with pytest.warns(UserWarning, match=r"1 has 100.00% of the total importance, so the penalty hardly affects"):
        learn(CustomModule(Detached(nn.Linear(4, 8), nn.Linear(8, 3))), EWC(lam=1.0), PenaltyMonitor())


@pytest.mark.parametrize("first", [True, False])
def test_the_monitor_may_come_before_or_after_the_strategy(first):
    torch.manual_seed(0)
    texts: list[str] = []
    pair = [EWC(lam=1e-12), PenaltyMonitor(report=texts.append)]
    learn(CustomModule(nn.Linear(4, 3)), *(reversed(pair) if first else pair), tasks=3)
    assert [text.split(":")[0] for text in texts] == ["the penalty is negligible"]


class SaveAfterEpoch(L.Callback):
    """Save a checkpoint inside a task."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_fit_resumed_inside_a_task_keeps_the_monitor_state(tmp_path):
    """The steps seen before the checkpoint count in the warnings."""
    data = DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(3, (64,))), 8)
    texts: list[str] = []
    module, strategy = CustomModule(nn.Linear(4, 3)), EWC(lam=1e-12)
    learn(module, strategy)
    save = SaveAfterEpoch(tmp_path / "inside.ckpt")
    trainer([strategy, PenaltyMonitor(report=texts.append), save], max_epochs=2).fit(module, data)
    resumed = [EWC(lam=1e-12), PenaltyMonitor(report=texts.append)]
    trainer(resumed, max_epochs=2).fit(CustomModule(nn.Linear(4, 3)), data, ckpt_path=save.path, weights_only=True)
    assert len(texts) == 2 and all("median of 16 steps" in text for text in texts)


class Constant(QuadraticStrategy):
    """A custom importance: the same number for every parameter."""

    def __init__(self, number):
        super().__init__(lam=1e-3)
        self.number = number

    def importance(self, trainer, pl_module):
        return {name: torch.full_like(p, self.number) for name, p in pl_module.named_parameters()}


@pytest.mark.parametrize(
    ("number", "says"),
    [(-1.0, "100% of the importance is negative"), (math.inf, "the importance is not finite in net, ")],
)
def test_a_custom_importance_must_be_finite_and_not_negative(number, says):
    with pytest.warns(UserWarning, match=says):
        learn(CustomModule(nn.Linear(4, 3)), Constant(number), PenaltyMonitor())


class NoQuadraticStrategy(Strategy):
    """A custom strategy that is not a QuadraticStrategy: weight decay to the weights after the latest task."""

    def __init__(self, lam: float = 1.0) -> None:
        self.lam = lam
        self.anchor: dict[str, torch.Tensor] = {}

    def penalty_state(self):
        ones = {name: torch.ones_like(p) for name, p in self.anchor.items()}
        return PenaltyState(quadratic(ones, self.anchor), self.lam, self.lam)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for name, p in pl_module.named_parameters():
            if name in self.anchor:
                p.grad.add_(p.detach() - self.anchor[name], alpha=self.lam)

    def on_train_end(self, trainer, pl_module):
        self.anchor = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


def test_a_strategy_of_any_class_is_monitored_by_its_penalty():
    """It needs to expose its penalty."""
    with pytest.warns(UserWarning, match="the penalty is negligible: .* Raise lam=1e-12"):
        learn(CustomModule(nn.Linear(4, 3)), NoQuadraticStrategy(lam=1e-12), PenaltyMonitor(), tasks=2)


def test_a_strategy_of_any_class_is_logged_by_its_penalty(run, tmp_path):
    """It needs to expose its penalty."""
    options = (
        *SHORT[:3],
        "log_every=5",
        "scenario=domain",
        "data.examples_per_task=320",
        "checkpoints=none",
        "optimizer=sgd",
        "lam=0.1",
    )
    target = "strategy._target_=tests.training.test_monitor.NoQuadraticStrategy"
    mine = run("strategy=lwf", "~strategy.temperature", "~strategy.loss_weights", target, *options, folder="mine")
    usual = run("strategy=l2", *options, folder="usual")
    assert mine["accuracy_matrix"] == usual["accuracy_matrix"]
    rows = [
        [
            row["train/penalty"]
            for row in csv.DictReader((tmp_path / name / LOG).read_text(encoding="utf-8").splitlines())
        ]
        for name in ("mine", "usual")
    ]
    assert rows[0] == rows[1]
    assert any(float(value) > 0 for value in rows[0] if value)


def test_a_sound_penalty_on_a_custom_module_gives_no_warning():
    texts: list[str] = []
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    learn(CustomModule(net), EWC(lam=10.0), PenaltyMonitor(report=texts.append), tasks=3)
    assert texts == []


def test_the_norms_are_those_of_the_loss_and_of_the_penalty():
    """They are the same whether the penalty gradient has been added already or not."""
    torch.manual_seed(0)
    module = CustomModule(nn.Linear(4, 3).double())
    strategy = L2(lam=3.0)
    learn_in_double = partial(trainer([strategy]).fit, module)
    x, y = torch.randn(16, 4, dtype=torch.double), torch.randint(3, (16,))
    learn_in_double(DataLoader(TensorDataset(x, y), 8))
    anchors = strategy.penalty.anchor
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    optimizer = module.configure_optimizers()
    module.training_step((x, y), 0).backward()
    loss = math.sqrt(sum(p.grad.square().sum().item() for p in module.parameters()))
    penalty = {n: 3.0 * (p - anchors[n]).detach() for n, p in module.named_parameters()}
    expected = pytest.approx((loss, math.sqrt(sum(g.square().sum().item() for g in penalty.values()))))
    assert tuple(n.item() for n in gradient_norms(strategy, module, optimizer, added=False)) == expected
    for name, p in module.named_parameters():
        p.grad += penalty[name]
    assert tuple(n.item() for n in gradient_norms(strategy, module, optimizer, added=True)) == expected


def test_the_monitor_samples_at_least_every_step():
    with pytest.raises(ConfigError, match="every=0: expected an integer >= 1"):
        PenaltyMonitor(every=0)


# --- no warnings ---------------------------------------------------------------------------------------------------------


def expected(strategy, scenario):
    return ["class_incremental"] if scenario == "class" and strategy in PENALISE else []


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("strategy", PENALISE)
def test_shipped_strategies_warn_for_class_incremental_only(run, strategy, scenario):
    assert kinds(run(*SHORT[:2], *SHORT[3:], "steps=20", f"strategy={strategy}", f"scenario={scenario}")) == expected(
        strategy, scenario
    )


@pytest.mark.parametrize("strategy", ["finetune", "lwf", "er"])
def test_strategies_without_quadratic_penalty_are_not_monitored(run, strategy):
    assert kinds(run(*SHORT, "steps=2", f"strategy={strategy}", "scenario=class")) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", PENALISE)
def test_the_real_defaults_warn_for_class_incremental_only(run, strategy):
    for scenario in ("task", "domain", "class"):
        options = (
            f"strategy={strategy}",
            "data=split_digits",
            f"scenario={scenario}",
            "logger=none",
            "checkpoints=none",
        )
        assert kinds(run(*options, folder=scenario)) == expected(strategy, scenario)


@pytest.mark.slow
def test_a_run_without_options_gives_no_warning(run):
    assert kinds(run("logger=none", "checkpoints=none")) == []
