"""Strategies on LightningModules that do not know clbench. One case for each way in which such modules are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from clbench import EWC, MAS, fisher, mas
from clbench.params import trainable
from clbench.strategies import Strategy
from tests.conftest import others_slow, trainer


class Module(L.LightningModule):
    """``net`` with a loss, as in Lightning's tutorials. The cases change one thing each."""

    def __init__(self, net: nn.Module, loss=F.cross_entropy, lr=1e-2):
        super().__init__()
        self.net = net
        self.loss = loss
        self.lr = lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class DictBatches(Module):
    def training_step(self, batch, batch_idx):
        return {"loss": self.loss(self(batch["pixels"]), batch["label"])}


class TupleOutputs(Module):
    """Returns its features too, as some nets for analysis do."""

    def forward(self, x):
        features = self.net[:-1](x)
        return self.net[-1](features), features

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self(x)[0], y)


class OneLogit(Module):
    """One logit per example, with targets 0.0 or 1.0 of shape (N,)."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x).squeeze(1), y)


class Manual(Module):
    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class TwoOptimizers(Module):
    """Body and head have one optimiser each. That of the head steps every second batch, on accumulated gradients."""

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        body, head = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        body.step()
        body.zero_grad()
        if batch_idx % 2:
            head.step()
            head.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[:-1].parameters(), 1e-2), torch.optim.Adam(self.net[-1].parameters(), 1e-2)]


class Transformer(nn.Module):
    """Tokens (N, T) -> embeddings, one encoder block with attention and dropout, mean over the tokens, outputs (N, 3)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)).mean(1))


def mlp(outputs=3):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))


def resnet():
    from torchvision.models import resnet18

    return resnet18(num_classes=3)


def vectors(task, n=40):
    """Examples of a task: x (n, 4), and y computed from x by a rule that differs between tasks."""
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(n, 4, generator=generator)
    return x, (x @ torch.randn(4, 3, generator=generator)).argmax(1)


def as_dicts(task):
    x, y = vectors(task)
    return {"pixels": x, "label": y}


def halves(task):
    x, y = vectors(task)
    return x, (y == task).float()


def numbers(task):
    x, _ = vectors(task)
    return x, x @ torch.randn(4, 2, generator=torch.Generator().manual_seed(10 + task))


def images(task):
    generator = torch.Generator().manual_seed(task)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randint(3, (8,), generator=generator)


def tokens(task):
    generator = torch.Generator().manual_seed(task)
    x = torch.randint(11, (24, 5), generator=generator)
    return x, (x[:, 0] + task) % 3


def first_output(module, batch):
    return module(batch[0])[0], batch[1]


@dataclass
class Case:
    """A module, the examples of a task as one batch, further arguments of the strategy, and a factor on lam."""

    module: Callable[[], L.LightningModule]
    examples: Callable[[int], Any] = vectors
    arguments: dict[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    stronger: float = 1.0


CASES = {
    "dict_batches": Case(lambda: DictBatches(mlp()), as_dicts),
    "tuple_outputs": Case(lambda: TupleOutputs(mlp()), arguments={"outputs": first_output}),
    "bce": Case(lambda: OneLogit(mlp(1)), halves, loss="binary_cross_entropy"),
    "mse": Case(lambda: Module(mlp(2), F.mse_loss), numbers, loss="mse"),
    "manual": Case(lambda: Manual(mlp())),
    "two_optimizers": Case(lambda: TwoOptimizers(mlp()), stronger=0.5),
    "torchvision_resnet": Case(lambda: Module(resnet(), lr=1e-4), images, stronger=1e4),
    "transformer": Case(lambda: Module(Transformer()), tokens),
}

STRATEGIES = {"ewc": (EWC, fisher, 1e3), "mas": (MAS, mas, 1e2)}


def rows(examples):
    """Return a batch as a list of examples, which a DataLoader accepts as a data set."""
    if isinstance(examples, dict):
        return [dict(zip(examples, row, strict=True)) for row in zip(*examples.values(), strict=True)]
    return list(zip(*examples, strict=True))


def fit(module, strategy, examples, epochs=4):
    loader = DataLoader(rows(examples), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    trainer([strategy], max_epochs=epochs).fit(module, loader)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("case", others_slow(CASES, *(name for name in CASES if name != "torchvision_resnet")))
def test_a_strategy_measures_and_penalises_any_module(case, name):
    case = CASES[case]
    make, measure, lam = STRATEGIES[name]
    only_ewc = {"loss": case.loss} if name == "ewc" else {}
    torch.manual_seed(0)
    penalised, free = case.module(), case.module()
    free.load_state_dict(penalised.state_dict())

    strategy = make(lam=lam * case.stronger, **case.arguments, **only_ewc)
    fit(penalised, strategy, case.examples(0))
    fit(free, Strategy(), case.examples(0))
    for p, q in zip(penalised.parameters(), free.parameters(), strict=True):
        assert torch.equal(p, q)  # there is no penalty in the first task, and measuring changes nothing

    direct = measure(penalised, [case.examples(0)], **case.arguments, **only_ewc)
    assert direct.keys() == trainable(penalised).keys()
    for parameter, importance in strategy.penalty.importance.items():
        scale = direct[parameter].max().item()
        torch.testing.assert_close(importance, direct[parameter], rtol=1e-4, atol=1e-5 * scale)
    assert sum(f.sum() for f in direct.values()) > 0

    first = strategy.penalty
    fit(penalised, strategy, case.examples(1))
    fit(free, Strategy(), case.examples(1))
    moved_penalised, moved_free = (first.value(trainable(module)).item() for module in (penalised, free))
    assert 0 < moved_penalised < 0.5 * moved_free


def test_lazy_layers_get_their_shape_before_the_first_fit():
    module = Module(nn.Sequential(nn.LazyLinear(3)))
    strategy = EWC(lam=1.0)
    fit(module, strategy, vectors(0), epochs=1)
    assert {name: f.shape for name, f in strategy.penalty.importance.items()} == {
        "net.0.weight": module.net[0].weight.shape,
        "net.0.bias": (3,),
    }


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("tuple_outputs", "expected a tensor .*, got tuple.* Pass outputs=fn"),
    ],
)
def test_a_batch_that_cannot_be_read_is_an_error_with_a_remedy(case, message):
    """The remedy is to pass a function that reads the batch."""
    module = CASES[case].module()
    with pytest.raises(ValueError, match=message):
        fit(module, EWC(lam=1.0), CASES[case].examples(0), epochs=1)


def test_fisher_of_attention_equals_the_loop_over_examples():
    """In float64, with the attention of the block: sum over labels of p (d log p)^2, one example at a time."""
    torch.manual_seed(0)
    module = Module(Transformer()).double().eval()
    x, _ = tokens(0)
    params = trainable(module)
    expected = {name: torch.zeros_like(p) for name, p in params.items()}
    for example in x[:6]:
        log_p = module(example[None]).log_softmax(1)[0]
        for label in range(3):
            gradients = torch.autograd.grad(log_p[label], list(params.values()), retain_graph=True)
            for name, g in zip(params, gradients, strict=True):
                expected[name] += log_p[label].exp().detach() * g**2 / 6
    measured = fisher(module, [(x[:6], None)])
    for name, f in expected.items():
        torch.testing.assert_close(measured[name], f, rtol=1e-9, atol=1e-15, msg=name)


def test_a_user_loop_of_one_trainer_per_task_needs_the_callback():
    """It needs nothing else."""
    torch.manual_seed(0)
    module, strategy = Module(mlp()), EWC(lam=100.0)
    make = partial(trainer, [strategy], max_epochs=1)
    for task in range(3):
        make().fit(module, DataLoader(rows(vectors(task)), batch_size=8))
    assert strategy.examples == 40
    assert strategy.penalty.importance.keys() == dict(module.named_parameters()).keys()
