"""The source documents of this project and what is wrong in them, one by one: their formula, in a few lines, and ours.

000: EWC on bit operations. 001: MAS. 002: EWC from MNIST to Fashion-MNIST. 004: EWC from MNIST to USPS. (003 is neuron
calibration.) What else they need is shown where it belongs:

- modes, buffers and random states are restored: tests/importance/test_preserve_state.py
- the Bernoulli Fisher is p (1 - p) (dz/dtheta)^2, opposite gradients do not cancel in MAS, every importance equals a loop
  over examples and labels: tests/importance/test_exactness.py
- lam = 0 is plain SGD (Adam, AdamW) bit for bit, state_dict restores importance and anchor: tests/strategies/test_penalty.py
- penalty and gradient are zero at the anchor: tests/strategies/test_quadratic.py
- the published accuracies of 002 with its frozen BatchNorm: tests/test_published.py
"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, MAS, fisher, mas
from clbench.experiment.build import build, build_body
from clbench.params import snapshot
from tests import references
from tests.conftest import trainer

AND_OR = torch.tensor([[a, b, op] for op in (0, 1) for a in (0, 1) for b in (0, 1)], dtype=torch.double)
TARGETS = torch.tensor([a and b for a in (0, 1) for b in (0, 1)] + [a or b for a in (0, 1) for b in (0, 1)]).double()


class Module(L.LightningModule):
    """A net, a loss and SGD, in float64."""

    def __init__(self, net, loss=cross_entropy, lr=0.1):
        super().__init__()
        self.net, self.loss, self.lr = net.double(), loss, lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def mlp(inputs, outputs, hidden=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()


def classified(n, inputs=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.double)
    return x, torch.randint(classes, (n,), generator=generator)


def in_batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def squared_batch_gradients(net, batches, label):
    """Documents 000 and 002: (gradient of the mean loss of a batch)^2, averaged over batches."""
    squares = {}
    for x, y in batches:
        for name, g in references.gradients(net, cross_entropy(net(x), label(net(x), y))).items():
            squares[name] = squares.get(name, 0.0) + g**2 / len(batches)
    return squares


def total(params):
    return sum(p.sum().item() for p in params.values())


def close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


# --- 000: AND, then OR, one output ------------------------------------------------------------------------------------


def logit_loss(z, y):
    return binary_cross_entropy_with_logits(z[:, 0], y)


def test_000_ewc_rebuilt_on_the_current_weights_is_zero():
    """EWC that is built once per task is not zero."""
    net = mlp(3, 1)
    for _ in range(50):  # one batch an epoch, the anchor replaced in each
        anchor = snapshot(dict(net.named_parameters()))
        penalty = sum(((p - anchor[name]) ** 2).sum() for name, p in net.named_parameters())
        assert penalty.item() == 0
        grads = references.gradients(net, logit_loss(net(AND_OR[4:]), TARGETS[4:]) + penalty)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p -= 0.5 * grads[name]

    class Penalties(L.Callback):
        def __init__(self, strategy):
            self.strategy, self.values = strategy, []

        def on_train_epoch_start(self, trainer, pl_module):
            self.values.append(self.strategy.value(pl_module).item())

    module, strategy = Module(mlp(3, 1), logit_loss, lr=0.5), EWC(lam=1.0, loss="binary_cross_entropy")
    seen = Penalties(strategy)
    for rows in (slice(0, 4), slice(4, 8)):
        batches = DataLoader(TensorDataset(AND_OR[rows], TARGETS[rows]), batch_size=4)
        trainer([strategy, seen], max_epochs=50, precision="64-true").fit(module, batches)
    assert seen.values[:51] == [0.0] * 51  # the first task, and the second where it begins
    assert min(seen.values[51:]) > 0


def test_000_the_exact_bernoulli_fisher_is_the_expectation():
    """It is the expectation over both labels, and the Fisher of the rounded label is below it."""
    net = mlp(3, 1)
    with torch.no_grad():
        net[2].bias += 4.0  # sure of itself, as a trained net is
    for x in AND_OR.split(1):
        p = net(x).sigmoid().item()
        both = [references.gradients(net, logit_loss(net(x), torch.tensor([y]).double())) for y in (0, 1)]
        expected = {name: (1 - p) * both[0][name] ** 2 + p * both[1][name] ** 2 for name in both[0]}
        exact = fisher(net, [x], loss="binary_cross_entropy")
        close(exact, expected, rtol=1e-9, atol=1e-15)
        rounded = both[round(p)]
        ratio = min(p, 1 - p) ** 2 / (p * (1 - p))
        assert ratio < 0.1
        close({name: g**2 for name, g in rounded.items()}, {name: ratio * f for name, f in exact.items()})
        close(fisher(net, [x], labels="predicted", loss="binary_cross_entropy"), {n: g**2 for n, g in rounded.items()})


def test_000_the_penalty_has_the_half_missing_in_the_document():
    module, strategy = Module(mlp(4, 3)), EWC(lam=7.0)
    trainer([strategy], precision="64-true").fit(module, DataLoader(TensorDataset(*classified(20)), batch_size=10))
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1
    without = 7.0 * total({name: f * 0.1**2 for name, f in strategy.penalty.importance.items()})
    assert strategy.value(module).item() == pytest.approx(without / 2)


# --- 001: MAS ---------------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """A body of which the first layer is frozen, and two heads of which one is used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.body = nn.Linear(4, 8), nn.Linear(8, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.heads[0](self.body(self.frozen(x).tanh()).tanh())


def test_001_an_unused_head_and_a_frozen_layer_are_allowed():
    net, (x, y) = TwoHeads().double(), classified(12)
    net(x).square().sum(1).mean().backward()
    with pytest.raises(AttributeError, match="NoneType"):
        [p.grad.data for p in net.parameters()]  # as the document reads them
    net.zero_grad()
    omega = mas(net, [x])
    assert omega.keys() == {"body.weight", "body.bias", *(f"heads.{h}.{n}" for h in (0, 1) for n in ("weight", "bias"))}
    assert not omega["heads.1.weight"].any()
    module, strategy = Module(net), MAS(lam=1.0)
    batches = DataLoader(TensorDataset(x, y), batch_size=4)
    trainer([strategy], precision="64-true").fit(module, batches)
    module.net.heads.append(nn.Linear(8, 3).double())  # the penalty does not know the new head
    trainer([strategy], precision="64-true").fit(module, batches)
    assert not strategy.penalty.importance["net.heads.2.weight"].any()
    assert strategy.penalty.importance["net.body.weight"].all()


def test_001_a_smaller_last_batch_has_no_larger_weight():
    net, (x, y) = mlp(4, 3), classified(10)
    expected = references.mas(net, x)
    for size in (4, 7, 10):
        close(mas(net, in_batches(x, y, size)), expected, rtol=1e-10, atol=1e-13)
    one_by_one = in_batches(x[:9], y[:9], 3) + in_batches(
        x[9:], y[9:], 1
    )  # per batch, the last example counts three times
    batch_means = [mas(net, [batch]) for batch in one_by_one]
    mean_of_means = {name: sum(m[name] for m in batch_means) / 4 for name in expected}
    assert not torch.allclose(mean_of_means["0.weight"], expected["0.weight"], rtol=0.01)
    close(mas(net, one_by_one), expected, rtol=1e-10, atol=1e-13)


def test_001_every_task_counts_once():
    """The list of guards in the document counts early tasks several times."""
    guards = []
    for task in range(4):  # every guard holds the ones before it, and all of them are added
        new = torch.eye(4)[task]
        guards.append(new + sum(guards))
    assert guards[-1].tolist() == [4, 2, 1, 1]

    module, strategy, omegas = Module(mlp(4, 3)), MAS(lam=1.0), []
    for task in range(4):
        x, y = classified(12, seed=task)
        trainer([strategy], precision="64-true").fit(module, DataLoader(TensorDataset(x, y), batch_size=4))
        omegas.append(mas(module, [x]))
    close(strategy.penalty.importance, {name: sum(omega[name] for omega in omegas) for name in omegas[0]})


# --- 002: MNIST, then Fashion-MNIST -----------------------------------------------------------------------------------


def test_002_predicted_is_neither_exact_nor_empirical():
    """The argument ``labels`` chooses between them."""
    net, (x, y) = mlp(4, 3), classified(200)
    values = {labels: fisher(net, [(x, y)], labels=labels) for labels in ("exact", "empirical", "predicted")}
    sums = {labels: total(f) for labels, f in values.items()}
    assert sums["predicted"] < 0.9 * sums["exact"]
    assert abs(sums["empirical"] / sums["exact"] - 1) > 0.01
    close(values["predicted"], references.fisher(net, x, y, "predicted"), rtol=1e-9, atol=1e-14)
    close(values["empirical"], references.fisher(net, x, y, "empirical"), rtol=1e-9, atol=1e-14)
    drawn = fisher(net, [(x, y)], labels="sample", label_samples=300)
    assert total(drawn) == pytest.approx(sums["exact"], rel=0.05)


def test_002_the_fisher_is_the_mean_over_the_examples_seen():
    """The code of the document gives about half of it."""
    net = mlp(4, 3)
    x, y = (t.expand(60, *t.shape[1:]) for t in classified(1))  # all examples are one, so any number gives its Fisher
    batches = in_batches(x, y, 1)
    expected = fisher(net, [(x, y)], labels="predicted")

    def as_in_the_document(num_batch):
        squares = {name: torch.zeros_like(f) for name, f in expected.items()}
        for i, (a, _) in enumerate(batches):
            if i > num_batch:
                break
            for name, g in references.gradients(net, cross_entropy(net(a), net(a).argmax(1))).items():
                squares[name] += g**2 / len(batches)
        return squares

    for num_batch in (30, 12):  # of 60, as 300 of 600: 31/60, and 301/600 = 0.502 there
        share = (num_batch + 1) / 60
        close(as_in_the_document(num_batch), {name: share * f for name, f in expected.items()})
        close(fisher(net, batches, labels="predicted", samples=num_batch), expected)
        close(fisher(net, batches[:num_batch], labels="predicted"), expected)


def test_002_the_squared_mean_gradient_is_the_fisher_over_b():
    """This is so for batches of b examples with gradients that are close to random."""
    net, (x, _) = mlp(4, 3), classified(2000)
    y = torch.multinomial(net(x).softmax(1).detach(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    each = total(fisher(net, [(x, y)], labels="empirical"))
    for b in (10, 50):
        batches = in_batches(x, y, b)
        squared = total(squared_batch_gradients(net, batches, lambda z, y: y))
        assert squared / each == pytest.approx(1 / b, rel=0.3)
        assert total(fisher(net, batches, labels="empirical")) == pytest.approx(each)
        grouped = total(fisher(net, batches, labels="empirical", fisher_batch=b))  # for comparison with such code
        assert grouped == pytest.approx(squared, rel=0.3)


class Modes(L.Callback):
    """Whether the learner, and its BatchNorm, train in each batch."""

    def __init__(self):
        self.seen = set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        norms = {m.training for m in pl_module.modules() if isinstance(m, nn.BatchNorm1d)}
        self.seen.add((pl_module.training, *norms))


@pytest.mark.parametrize(("bn", "norm_trains"), [("train", True), ("freeze_after_first", False)])
def test_002_measuring_restores_the_modes(composed, bn, norm_trains):
    """The second task is trained in train mode, with batch norm as configured."""
    options = ("strategy=ewc", "samples=50", "net=mlp_bn", "net.hidden=[16]", "net.dropout=0.2", "data.tasks=2")
    sequence, learner, strategy = build(composed(*options, "scenario=domain", f"bn={bn}"))
    means = []
    for index, task in enumerate(sequence):
        modes = Modes()
        trainer([strategy, modes]).fit(learner, datamodule=task)
        assert modes.seen == {(True, norm_trains or index == 0)}
        means.append(next(b.clone() for name, b in learner.named_buffers() if name.endswith("running_mean")))
    assert torch.equal(means[0], means[1]) is not norm_trains
    scales = {name for name in strategy.penalty.importance if name.startswith("net.body.3.")}
    assert scales == {"net.body.3.weight", "net.body.3.bias"}  # of BatchNorm; its buffers are not penalised
    assert not strategy.penalty.importance.keys() & dict(learner.named_buffers()).keys()


# --- 004: MNIST, then USPS --------------------------------------------------------------------------------------------

NET_OF_004 = ("data=mnist_usps", "scenario=domain", "net=mlp", "net.hidden=[1024,512,256,128,128]")


def test_004_the_net_of_the_document_is_an_option_of_the_mlp(composed):
    cfg = composed(*NET_OF_004)
    body, _ = build_body(cfg, torch.zeros(2, 1, 28, 28))
    head = instantiate(cfg.scenario).build_head(128, (10, 10))
    layers = [m for m in [*body.modules(), *head.modules()] if isinstance(m, nn.Linear)]
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    assert widths == [784, 1024, 512, 256, 128, 128, 10]  # one head for both tasks


@pytest.mark.slow
def test_004_the_penalty_retains_mnist_after_usps(run, real_data):
    """MNIST is forgotten without a penalty."""
    short = (*NET_OF_004, "strategy=ewc", "data.examples_per_task=4000", "samples=500", "epochs=3")
    rows = [
        run(*short, f"lam={lam}", f"data_dir={real_data}", folder=lam)["accuracy_matrix"][1] for lam in ("0", "1e5")
    ]
    assert rows[1][0] > rows[0][0] + 0.1
    assert rows[1][1] > 0.8


# --- what all of them need --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", ["exact", "sample", "empirical", "predicted"])
def test_an_importance_is_detached_and_not_negative(dtype, labels):
    """It has the shape, dtype and device of its parameter."""
    net, (x, y) = mlp(4, 3).to(dtype), classified(12)
    for measured in (fisher(net, [(x.to(dtype), y)], labels=labels), mas(net, [x.to(dtype)])):
        for name, p in net.named_parameters():
            f = measured[name]
            assert (f.dtype, f.device, f.shape, f.requires_grad) == (dtype, p.device, p.shape, False)
            assert (f >= 0).all() and f.any()


def test_ewc_on_linear_regression_ends_in_the_closed_form():
    """Task B with F = 2 E[x_i^2] of A: (2 X'X / n + lam diag F) w = 2 X'y / n + lam F w_A."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(20, 3, generator=generator, dtype=torch.double) for _ in range(2)]
    ys = [x @ torch.randn(3, 1, generator=generator, dtype=torch.double) for x in xs]
    lam, module = 0.7, Module(nn.Linear(3, 1, bias=False), mse_loss)
    strategy = EWC(lam=lam, loss="mse")
    weights = []
    for x, y in zip(xs, ys, strict=True):
        full_batches = DataLoader(TensorDataset(x.repeat(400, 1), y.repeat(400, 1)), batch_size=20)
        trainer([strategy], precision="64-true").fit(module, full_batches)
        weights.append(module.net.weight.detach()[0].clone())
    torch.testing.assert_close(weights[0], torch.linalg.lstsq(xs[0], ys[0]).solution[:, 0])
    f = 2 * xs[0].square().mean(0)
    left = 2 * xs[1].T @ xs[1] / 20 + lam * f.diag()
    right = 2 * xs[1].T @ ys[1][:, 0] / 20 + lam * f * weights[0]
    torch.testing.assert_close(weights[1], torch.linalg.solve(left, right))
