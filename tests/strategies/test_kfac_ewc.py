"""KFAC-EWC against dense matrices, and its behaviour in a Trainer and on the command line."""

from __future__ import annotations

import io
from itertools import pairwise

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clbench import KFACEWC
from clbench.errors import ConfigError
from clbench.importance.matrix_layers import MatrixLayer
from clbench.strategies.norms import gradient_norms
from clbench.training.monitor import PenaltyMonitor
from tests import references
from tests.conftest import trainer
from tests.strategies.test_penalty import Plain, data, learn, loader

LAM = 7.0


def layer_and_inputs(kind: str, bias: bool) -> tuple[nn.Module, torch.Tensor]:
    """Return a net whose only parameters are those of one layer, in float64, and inputs."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=bias) if kind == "linear" else nn.Conv2d(2, 3, 2, stride=2, padding=1, bias=bias)
    x = torch.randn(6, 4) if kind == "linear" else torch.randn(6, 2, 5, 4)
    return nn.Sequential(
        layer, *([] if kind == "linear" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    ).double(), x.double()


def move(module: nn.Module, seed: int = 1, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Add random numbers to the parameters, and return these numbers by name."""
    generator = torch.Generator().manual_seed(seed)
    steps = {n: scale * torch.randn(p.shape, generator=generator).to(p) for n, p in module.named_parameters()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.add_(steps[name])
    return steps


def columns(steps: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return vec of the matrix [W b], one column after another."""
    parts = [steps["0.weight"].flatten(1)] + [steps[name][:, None] for name in steps if name == "0.bias"]
    return torch.cat(parts, 1).T.flatten()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("bias", [True, False])
def test_one_task_has_the_penalty_of_the_dense_matrix(kind, bias):
    module, x = layer_and_inputs(kind, bias)
    y = torch.arange(6) % 3
    a, g = references.kronecker(module, x, y)["0.weight"]
    strategy = KFACEWC(lam=LAM)
    strategy.consolidate(module, DataLoader(TensorDataset(x, y), 4))
    assert strategy.value(module) == 0
    d = columns(move(module))
    torch.testing.assert_close(strategy.value(module), LAM / 2 * d @ torch.kron(a, g) @ d)


class Mixed(L.LightningModule):
    """Convolution, normalisation, a grouped convolution, an output layer, and weights and biases in two optimizers if wanted."""

    def __init__(self, optimizers=1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            *(
                nn.Conv1d(1, 4, 2),
                nn.GroupNorm(2, 4),
                nn.Conv1d(4, 4, 2, groups=2),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(8, 3),
            )
        )
        self.number = optimizers
        self.automatic_optimization = False

    def forward(self, x):
        return self.net(x[:, None])

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0].to(self.dtype)), batch[1]))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        if self.number == 1:
            return torch.optim.SGD(self.parameters(), 0.1)
        is_bias = {p: name.endswith("bias") for name, p in self.named_parameters()}
        return [torch.optim.SGD([p for p, found in is_bias.items() if found == want], 0.1) for want in (True, False)]


def two_tasks(module: Mixed, **options) -> KFACEWC:
    """Return a strategy after two tasks, with the weights away from the anchor."""
    strategy = KFACEWC(lam=LAM, **options)
    for task in range(2):
        move(module, task)
        strategy.consolidate(module, loader64(task))
    move(module, 3)
    strategy.begin(module)
    return strategy


def loader64(seed: int) -> DataLoader:
    x, y = data(seed).tensors
    return DataLoader(TensorDataset(x.double(), y), 8)


@pytest.mark.parametrize("how", ["per_task", "sum_factors", "nearest"])
@pytest.mark.parametrize("optimizers", [1, 2])
def test_the_gradient_that_is_added_is_that_of_the_value(how, optimizers):
    """With the biases in another optimizer too, although the gradient of a weight depends on its bias."""
    module = Mixed(optimizers).double()
    strategy = two_tasks(module, accumulate=how)
    params = dict(module.named_parameters())
    expected = torch.autograd.grad(strategy.value(module), list(params.values()))
    made = module.configure_optimizers()
    for optimizer in made if optimizers == 2 else [made]:
        optimizer.zero_grad()
        strategy.add_gradients(optimizer)
        loss, penalty = gradient_norms(strategy, module, optimizer, added=True)
        assert loss < 1e-5 * penalty
    for (name, p), g in zip(params.items(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g, msg=lambda m, n=name: f"{n}: {m}")
    strategy.on_exception(None, None, None)


def test_other_parameters_have_the_diagonal_at_the_newest_anchor():
    """The scale of a norm layer, and the grouped convolution, have the sum of the diagonals of both tasks."""
    module = Mixed().double()
    total = {}
    for task in range(2):
        move(module, task)
        x, y = loader64(task).dataset.tensors
        for name, f in references.fisher(module, x, y).items():
            total[name] = total.get(name, 0) + f
    strategy = two_tasks(Mixed().double())
    assert strategy.penalty.diagonal.keys() == {f"net.{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
    for name, f in strategy.penalty.diagonal.items():
        torch.testing.assert_close(f, total[name])
    assert set(strategy.penalty.products) == {MatrixLayer(f"net.{i}.weight", f"net.{i}.bias") for i in (0, 5)}


@pytest.mark.parametrize(("exclude", "rows"), [("0.bias", slice(0, 12)), ("0.weight", slice(12, 15))])
def test_patterns_that_select_a_part_of_a_layer_keep_its_block(exclude, rows):
    module, x = layer_and_inputs("linear", True)
    y = torch.arange(6) % 3
    a, g = references.kronecker(module, x, y)["0.weight"]
    strategy = KFACEWC(lam=LAM, exclude=exclude)
    strategy.consolidate(module, DataLoader(TensorDataset(x, y), 4))
    d = columns(move(module))[rows]
    torch.testing.assert_close(strategy.value(module), LAM / 2 * d @ torch.kron(a, g)[rows, rows] @ d)


def test_patterns_may_be_changed_between_tasks():
    module, x = layer_and_inputs("linear", True)
    batches = DataLoader(TensorDataset(x, torch.arange(6) % 3), 4)
    strategy = KFACEWC(lam=LAM)
    strategy.consolidate(module, batches)
    strategy.exclude = "*.bias"
    strategy.consolidate(module, batches)
    assert [(layer, len(products)) for layer, products in strategy.penalty.products.items()] == [
        (MatrixLayer("0.weight", None), 2)
    ]


def test_the_state_contains_the_penalty_and_only_plain_values():
    module = Mixed().double()
    strategy, again = two_tasks(module, keep_previous=True), KFACEWC(lam=LAM, keep_previous=True)
    file = io.BytesIO()
    torch.save(strategy.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one, other in ((strategy.penalty, again.penalty), (strategy.previous, again.previous)):
        assert one.products.keys() == other.products.keys()
        assert torch.equal(one.value(dict(module.named_parameters())), other.value(dict(module.named_parameters())))
    strategy.on_exception(None, None, None)


def test_measuring_again_replaces_the_last_task():
    module = Mixed().double()
    strategy = two_tasks(module, keep_previous=True)
    before = strategy.cost()["bytes"]
    strategy.consolidate(module, loader64(1), replace=True)
    assert strategy.cost()["bytes"] == before
    assert strategy.value(module) == 0


@pytest.mark.parametrize("how", ["per_task", "nearest"])
def test_the_cost_is_that_of_all_tensors(how):
    module, strategy = Plain(), KFACEWC(lam=0.1, accumulate=how)
    learn(module, strategy)
    body, head = 5 * 5 + 8 * 8, 9 * 9 + 3 * 3  # head 0 is used in two tasks and head 1 in one
    number = {"per_task": 3 * body + 3 * head, "nearest": body + 2 * head}[how]
    zeros = 2 * 3 * 9  # the diagonal of a head in a task that does not use it
    assert strategy.cost()["bytes"] == 4 * (sum(p.numel() for p in module.parameters()) + number + zeros)


def test_the_monitor_reads_the_penalty():
    module, messages = Plain(lr=1e-9), []
    strategy, monitor = KFACEWC(lam=1e6), PenaltyMonitor(report=messages.append)
    for task in range(2):
        trainer([strategy, monitor], max_epochs=3).fit(module, loader(task))
        move(module)
    assert [w.kind for w in monitor.warnings] == ["penalty_dominates"]
    importance = strategy.penalty_state().importance
    assert {name: f.shape for name, f in importance.items()} == {n: p.shape for n, p in module.named_parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fisher_batch": 8, "fisher": "empirical"}, "fisher_batch=8: expected 1"),
        ({"grow": "rows"}, "grow=rows: expected None"),
        ({"store": "cpu"}, "store=cpu: expected None"),
        ({"accumulate": "mean"}, "accumulate"),
    ],
)
def test_options_without_meaning_for_factors_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        KFACEWC(lam=1.0, **options)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("how", ["per_task", "sum_factors", "nearest"])
def test_digits_are_learned_in_every_scenario(run, scenario, how):
    found = run(
        "strategy=kfac_ewc", f"strategy.accumulate={how}", f"scenario={scenario}", "data.examples_per_task=70", "lam=10",
        "data=split_digits", "net.hidden=[12]", "steps=20", "optimizer=adam", "logger=none",
    )  # fmt: skip
    sizes = [cost["bytes"] for cost in found["importance"]]
    assert all(0 <= r <= 1 for row in found["accuracy_matrix"] for r in row)
    is_growing = how == "per_task" or scenario == "task"  # where each task has an output layer
    assert [b > a for a, b in pairwise(sizes)] == 4 * [is_growing]
