"""EWC-LoRA penalises the weight of an adapted layer, and not the factors of its adapter."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.nn.functional import cross_entropy

from clbench import EWC, EWCLoRA
from clbench.errors import ConfigError
from clbench.nets import add_lora
from clbench.params import trainable
from clbench.strategies import Strategy
from clbench.strategies.adapted_layer import adapted_layers
from clbench.strategies.norms import gradient_norms
from clbench.strategies.quadratic import quadratic
from tests import references
from tests.conftest import trainer
from tests.strategies.test_penalty import assert_same, data, loader

peft = pytest.importorskip("peft")

WEIGHT, A, B = (f"body.0.{name}.weight" for name in ("base_layer", "lora_A.default", "lora_B.default"))
SCALE = 3.0


class Adapted(L.LightningModule):
    """A frozen layer with an adapter of rank 2 and scale 3, and an output layer that is trained whole."""

    def __init__(self, raw=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = add_lora(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), rank=2, targets=["0"], alpha=6)
        self.head = nn.Linear(8, 3)
        self.raw = raw

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return cross_entropy(self(batch[0].to(self.head.weight.dtype)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


def weight_of(module):
    """Return W + s B A, written out."""
    p = dict(module.named_parameters())
    return p[WEIGHT] + SCALE * p[B] @ p[A]


def moved(strategy):
    """Return a module in float64 and a strategy with a random penalty, away from its anchor."""
    module = Adapted().double()
    generator = torch.Generator().manual_seed(1)
    drawn = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.double) for name, p in module.named_parameters()
    }
    with torch.no_grad():
        for name, p in trainable(module).items():
            p.copy_(drawn[name])
    names = [name for name in drawn if "lora" not in name]
    importance = {name: drawn[name].square() for name in names}
    strategy.penalty = quadratic(importance, {name: drawn[name] / 2 for name in names})
    strategy.begin(module)
    return module, strategy


def written_out(module, strategy):
    q = strategy.penalty
    now = {**dict(module.named_parameters()), WEIGHT: weight_of(module)}
    names = [WEIGHT, "head.weight", "head.bias"]
    return strategy.lam / 2 * sum((q.importance[n] * (now[n] - q.anchor[n]) ** 2).sum() for n in names)


def test_the_gradient_is_that_of_the_written_out_penalty():
    """It is the gradient of lam/2 sum F (W + s B A - a)^2 with respect to A, B and the output layer."""
    module, strategy = moved(EWCLoRA(lam=7.0))
    params = trainable(module)
    expected = dict(zip(params, torch.autograd.grad(written_out(module, strategy), list(params.values())), strict=True))
    for p in params.values():
        p.grad = torch.ones_like(p)
    strategy.add_gradients(module.configure_optimizers())
    for name, p in params.items():
        torch.testing.assert_close(p.grad, 1 + expected[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(strategy.penalty_state().gradient(params), expected, rtol=1e-12, atol=1e-12)


def test_the_value_is_the_written_out_penalty():
    module, strategy = moved(EWCLoRA(lam=7.0))
    for value in (strategy.value(module), strategy.penalty_state().value(trainable(module))):
        torch.testing.assert_close(value, written_out(module, strategy))


def test_the_chain_rule_of_the_factors():
    """The gradients of A and B are s B^T G and s G A^T."""
    module, strategy = moved(EWCLoRA(lam=7.0))
    p, q = dict(module.named_parameters()), strategy.penalty
    g = 7.0 * q.importance[WEIGHT] * (weight_of(module) - q.anchor[WEIGHT])
    found = strategy.penalty_state().gradient(trainable(module))
    torch.testing.assert_close(found[A], SCALE * p[B].T @ g)
    torch.testing.assert_close(found[B], SCALE * g @ p[A].T)


def test_the_monitor_separates_the_gradients_of_loss_and_penalty():
    module, strategy = moved(EWCLoRA(lam=7.0))
    for p in trainable(module).values():
        p.grad = torch.ones_like(p)
    optimizer = module.configure_optimizers()
    strategy.add_gradients(optimizer)
    loss, _ = gradient_norms(strategy, module, optimizer)
    assert loss.item() == pytest.approx(sum(p.numel() for p in trainable(module).values()) ** 0.5)


def plain(module):
    """Return the same function as an ordinary net, whose first weight is W + s B A."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    p = dict(module.named_parameters())
    values = [weight_of(module), p["body.0.base_layer.bias"], p["head.weight"], p["head.bias"]]
    with torch.no_grad():
        for mine, value in zip(net.parameters(), values, strict=True):
            mine.copy_(value)
    return net


def test_the_importance_is_the_fisher_of_the_whole_weight():
    module, strategy = Adapted().double(), EWCLoRA(lam=1.0)
    trainer([strategy], precision="64-true").fit(module, loader(0))
    x, y = data(0).tensors
    expected = references.fisher(plain(module), x.double(), y)
    found = strategy.penalty.importance
    assert found.keys() == {WEIGHT, "head.weight", "head.bias"}
    torch.testing.assert_close(found[WEIGHT], expected["0.weight"])
    torch.testing.assert_close(found["head.weight"], expected["2.weight"])


class BeforeMerge(L.Callback):
    """Records the weight and the outputs of a module after its last step."""

    def on_train_end(self, trainer, pl_module):
        x = data(0).tensors[0].to(pl_module.head.weight.dtype)
        self.weight, self.outputs = weight_of(pl_module).detach(), pl_module(x).detach()


def test_after_a_task_the_update_is_merged_and_an_adapter_starts():
    """The outputs stay, and the weight is the anchor."""
    module, strategy, before = Adapted().double(), EWCLoRA(lam=1.0), BeforeMerge()
    start = dict(module.named_parameters())[WEIGHT].clone()
    trainer([before, strategy], precision="64-true").fit(module, loader(0))
    p = dict(module.named_parameters())
    assert not torch.equal(start, p[WEIGHT])
    torch.testing.assert_close(p[WEIGHT].detach(), before.weight)
    torch.testing.assert_close(module(data(0).tensors[0].double()).detach(), before.outputs)
    assert torch.equal(strategy.penalty.anchor[WEIGHT], p[WEIGHT])
    assert not p[B].any() and p[A].any()
    assert strategy.value(module) == 0


def test_the_penalty_of_the_second_task_is_that_of_the_paper():
    """It is lam/2 sum F_1 (s B A)^2 for the adapter. After the task, the importance is the sum F_1 + F_2."""
    module, strategy = Adapted().double(), EWCLoRA(lam=5.0, exclude=["head.*"])
    trainer([strategy], precision="64-true").fit(module, loader(0))
    first = strategy.penalty.importance[WEIGHT].clone()
    with torch.no_grad():
        dict(module.named_parameters())[B].normal_()
    p = dict(module.named_parameters())
    expected = 5.0 / 2 * (first * (SCALE * p[B] @ p[A]) ** 2).sum()
    torch.testing.assert_close(strategy.value(module), expected)
    trainer([strategy], precision="64-true").fit(module, loader(1))
    x, y = data(1).tensors
    second = references.fisher(plain(module), x.double(), y)["0.weight"]
    torch.testing.assert_close(strategy.penalty.importance[WEIGHT], first + second)


def test_a_larger_lam_keeps_the_weight_closer_to_its_anchor():
    module, strategy = Adapted(), EWCLoRA(lam=1.0, exclude=["head.*"])
    trainer([strategy]).fit(module, loader(0))
    anchor, distances = strategy.penalty.anchor[WEIGHT].clone(), []
    for lam in (0.0, 10.0, 100.0):
        twin, other, last = Adapted(), EWCLoRA(lam=lam, exclude=["head.*"]), BeforeMerge()
        twin.load_state_dict(module.state_dict())
        other.load_state_dict(strategy.state_dict())
        trainer([last, other], max_epochs=20).fit(twin, loader(1))
        distances.append((last.weight - anchor).norm().item())
    assert distances[0] > 1.2 * distances[1] > 1.2 * 1.2 * distances[2]


def test_lam_0_is_fine_tuning_with_merged_adapters_bit_for_bit():
    module, twin, strategy = Adapted(), Adapted(), EWCLoRA(lam=0.0)
    for task in range(2):
        for each, callback in ((module, strategy), (twin, Strategy())):
            torch.manual_seed(task)
            trainer([callback]).fit(each, loader(task))
        torch.manual_seed(task)
        adapted_layers(twin)[0].merge()
        assert_same(*({n: p for n, p in m.named_parameters() if n != A} for m in (module, twin)))
        with torch.no_grad():
            dict(twin.named_parameters())[A].copy_(dict(module.named_parameters())[A])


def test_a_strategy_that_was_saved_continues_like_the_original():
    module, strategy = Adapted(), EWCLoRA(lam=10.0)
    trainer([strategy]).fit(module, loader(0))
    twin, loaded = Adapted(), EWCLoRA(lam=10.0)
    twin.load_state_dict(module.state_dict())
    loaded.load_state_dict(strategy.state_dict())
    for each, callback in ((module, strategy), (twin, loaded)):
        torch.manual_seed(1)
        trainer([callback]).fit(each, loader(1))
    assert_same(dict(module.named_parameters()), dict(twin.named_parameters()))
    assert_same(strategy.penalty.importance, loaded.penalty.importance)


def test_measuring_changes_no_requires_grad():
    module, strategy = Adapted(), EWCLoRA(lam=1.0)
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    trainer([strategy]).fit(module, loader(0))
    trainer([strategy]).fit(module, loader(1))
    assert {name: p.requires_grad for name, p in module.named_parameters()} == before


def test_a_pattern_leaves_out_an_adapted_layer():
    module, strategy = Adapted(), EWCLoRA(lam=1.0, exclude=["*.base_layer.weight"])
    trainer([strategy]).fit(module, loader(0))
    assert strategy.penalty.importance.keys() == {"head.weight", "head.bias"}
    trainer([strategy]).fit(module, loader(1))


def test_the_last_task_is_measured_again():
    """The adapter is merged once."""
    module, strategy = Adapted(), EWCLoRA(lam=1.0, keep_previous=True, consolidate_at="manual")
    trainer([strategy]).fit(module, loader(0))
    strategy.consolidate(module, loader(0))
    weight, once = weight_of(module).detach().clone(), strategy.penalty.importance[WEIGHT].clone()
    strategy.consolidate(module, loader(0), replace=True)
    assert torch.equal(weight_of(module), weight)
    assert torch.equal(strategy.penalty.importance[WEIGHT], once)


def test_a_step_without_the_penalty_is_an_error():
    """The factors are watched, because the weight itself never changes by a step."""

    class Raw(Adapted):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module, strategy = Adapted(), EWCLoRA(lam=1.0, exclude=["head.*"])
    trainer([strategy]).fit(module, loader(0))
    raw = Raw()
    raw.load_state_dict(module.state_dict())
    with pytest.raises(ConfigError, match="SGD stepped without Lightning's wrapper"):
        trainer([strategy]).fit(raw, loader(1))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


UNUSUAL = {"dora": {"use_dora": True}, "biases": {"lora_bias": True}}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_adapter_that_is_no_product_is_refused(name):
    net = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["layer"], **UNUSUAL[name]), Small())
    with pytest.raises(ConfigError, match=r"layer.base_layer.weight: expected a frozen layer .* Use peft.LoraConfig"):
        adapted_layers(net)


def test_a_trained_weight_next_to_its_adapter_is_refused():
    net = add_lora(Small(), 1, ["layer"])
    net.layer.base_layer.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"layer.base_layer.weight: expected a frozen layer"):
        adapted_layers(net)


def test_a_net_without_adapters_is_refused_in_one_line(run):
    message = r"EWCLoRA: expected a net with adapters of low rank, got none in .*net.lora="
    with pytest.raises(ConfigError, match=message) as caught:
        run("strategy=ewc_lora", "net.lora=null", "dry_run=true")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        trainer([EWCLoRA()]).fit(BoringModel())


def test_a_run_penalises_the_weights_of_its_adapted_layers(run, tmp_path):
    run("strategy=ewc_lora", "data.tasks=2", "steps=3", "net.hidden=[6]", "net.lora.rank=2")
    state = torch.load(tmp_path / "run/checkpoints/task_1.ckpt", weights_only=True)
    assert state["strategy"]["importance"].keys() >= {"net.body.1.base_layer.weight"}
    assert not any("lora_" in name for name in state["strategy"]["importance"])


def test_ewc_penalises_the_factors_instead():
    module, strategy = Adapted(), EWC(lam=1.0)
    trainer([strategy]).fit(module, loader(0))
    assert strategy.penalty.importance.keys() == {A, B, "head.weight", "head.bias"}
