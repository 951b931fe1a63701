"""Selection of the parameters to penalise."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, L2, MAS, OnlineEWC, fisher
from clbench.errors import ConfigError
from clbench.params import trainable
from clbench.strategies import Strategy
from clbench.strategies.patterns import selected
from tests.conftest import trainer

STRATEGIES = {"ewc": EWC, "online_ewc": OnlineEWC, "mas": MAS, "l2": L2}


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


ALL = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "head.weight", "head.bias"}


def loader(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (None, None, ALL),
        (["*"], None, ALL),
        (None, ["head.*"], {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}),
        (None, ["BatchNorm*"], ALL - {"body.1.weight", "body.1.bias"}),
        (None, ["*.bias"], {"body.0.weight", "body.1.weight", "head.weight"}),
        (["Linear.*"], ["head.*", "*.bias"], {"body.0.weight"}),
        (["body.*", "head.bias"], None, ALL - {"head.weight"}),
        ("head.*", None, {"head.weight", "head.bias"}),
        (["body.[01].weight"], None, {"body.0.weight", "body.1.weight"}),
    ],
)
def test_a_parameter_is_penalised_if_included_and_not_excluded(include, exclude, left):
    assert selected(Plain(), include, exclude) == left


def test_a_shared_parameter_is_one_and_has_its_first_name():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert selected(nn.Sequential(first, second)) == {"0.weight", "0.bias", "1.bias"}
    assert selected(nn.Sequential(first, second)) == dict(nn.Sequential(first, second).named_parameters()).keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_excluded_parameters_have_no_importance_and_no_anchor(name):
    """The other parameters have the same importance as without the patterns."""
    everything, some = STRATEGIES[name](lam=1.0), STRATEGIES[name](lam=1.0, exclude=["head.*", "BatchNorm*"])
    for strategy in (everything, some):
        trainer([strategy]).fit(Plain(), loader(0))
    assert some.penalty.importance.keys() == some.penalty.anchor.keys() == {"body.0.weight", "body.0.bias"}
    for name, f in some.penalty.importance.items():
        assert torch.equal(f, everything.penalty.importance[name])
    assert 0 < some.cost()["bytes"] < everything.cost()["bytes"]


def test_a_selection_is_kept_over_tasks_and_in_a_state_dict():
    module, strategy = Plain(), EWC(lam=1.0, include=["*.weight"], exclude=["head.*"])
    fishers = []
    for task in range(2):
        trainer([strategy]).fit(module, loader(task))
        fishers.append(fisher(module, loader(task)))
    names = {"body.0.weight", "body.1.weight"}
    for name in names:
        torch.testing.assert_close(strategy.penalty.importance[name], fishers[0][name] + fishers[1][name])
    other = EWC(lam=1.0, include=["*.weight"], exclude=["head.*"])
    other.load_state_dict(strategy.state_dict())
    assert other.penalty.importance.keys() == names
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    assert other.value(module).item() == strategy.value(module).item() > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_step_pulls_only_the_penalised_parameters(name):
    strategy = STRATEGIES[name](lam=1.0, include=["body.0.*"])
    module, free = Plain(), Plain()
    trainer([strategy]).fit(module, loader(0))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3)
    free.load_state_dict(module.state_dict())
    pull = {
        name: strategy.penalty.importance[name] * (p.detach() - strategy.penalty.anchor[name])
        for name, p in trainable(module).items()
        if name.startswith("body.0.")
    }
    trainer([strategy], limit_train_batches=1).fit(module, loader(1))
    trainer([Strategy()], limit_train_batches=1).fit(free, loader(1))
    for name, p in free.named_parameters():
        moved = module.get_parameter(name).detach() - p.detach()
        if name in pull:
            torch.testing.assert_close(moved, -0.1 * pull[name], atol=1e-6, rtol=1e-4)
        else:
            assert torch.equal(moved, torch.zeros_like(moved))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"exclude": ["*.haed.*"]},
            r"exclude='\*.haed.\*': expected a pattern that matches a parameter. The first of 6 parameters are body.0",
        ),
        ({"include": ["body.*", "bodies"]}, "include='bodies': expected a pattern that matches a parameter"),
        (
            {"include": ["head.*"], "exclude": ["Linear.*"]},
            "expected at least one parameter with a penalty, got none. Use strategy=finetune",
        ),
    ],
)
def test_a_pattern_without_a_match_is_an_error_before_training(options, message):
    module, strategy = Plain(), L2(lam=1.0, **options)
    before = module.head.weight.detach().clone()
    with pytest.raises(ConfigError, match=message) as caught:
        trainer([strategy]).fit(module, loader(0))
    assert "\n" not in str(caught.value)
    assert torch.equal(module.head.weight, before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_patterns_are_options_of_every_quadratic_strategy(run, tmp_path, name):
    """The command line takes them."""
    short = ("epochs=1", "data.tasks=2", "net.hidden=[8]", "+trainer.limit_train_batches=1")
    run(*short, f"strategy={name}", "strategy.exclude=['*.head.*','*.bias']")
    saved = torch.load(tmp_path / "run/checkpoints/task_1.ckpt", weights_only=True)
    assert saved["strategy"]["importance"].keys() == {"net.body.1.weight"}
