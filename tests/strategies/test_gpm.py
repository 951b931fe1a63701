"""GPM: what earlier tasks have used does not change the outputs for their examples."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
from torch import nn

from clbench.data import TaskSequence, permute
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits
from clbench.errors import ConfigError
from clbench.learner import Learner
from clbench.nets import Net, cnn, mlp
from clbench.strategies import GPM, gpm
from clbench.strategies.input_space import compress, extend, layers_in, matrix_of, rows_of
from tests.conftest import trainer

PLAIN = partial(torch.optim.SGD, lr=0.1)
OPTIMIZERS = {
    "sgd": PLAIN,
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "weight_decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


class Normed(nn.Module):
    """A body with layers of all kinds: an embedding of the brightness of pixels, a tied linear layer, and LayerNorm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 4)
        self.mix = nn.Linear(4, 4, bias=False)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.mix.weight
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4 * 64, 12)

    def forward(self, x):
        tokens = self.embed((x.flatten(1) * 16).round().long())
        return self.out(torch.tanh(self.norm(self.again(self.mix(tokens)))).flatten(1))


BODIES = {
    "linear": lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Linear(40, 12)),
    "mlp": lambda shape: mlp(shape, (40, 12)),
    "cnn": lambda shape: cnn(shape, channels=(12, 12), width=12),
    "normed": lambda shape: Normed(),
}


def sequence(scenario="task", tasks=3, examples=10):
    head = "multi" if scenario == "task" else "single"
    return TaskSequence(
        Digits, permute, tasks, Scenario(scenario, head), batch_size=5, scale=16.0, examples_per_task=examples
    )


def learner(tasks, body="mlp", optimizer=PLAIN, **options):
    torch.manual_seed(0)
    head = tasks.scenario.build_head(12, tasks.sizes)
    return Learner(Net(BODIES[body](tasks.shape), head), optimizer, **options).double()


def fit(strategy, module, task, epochs=3, callbacks=(), **options):
    trainer([strategy, *callbacks], max_epochs=epochs, precision="64-true", **options).fit(module, datamodule=task)


def outputs(module, tasks, index):
    (batch,) = tasks[index].importance_dataloader()
    module.eval()
    with torch.no_grad():
        return module(batch.x.double(), index)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("body", BODIES)
def test_old_outputs_stay_while_the_next_task_is_learned(body, optimizer):
    """With threshold 1 and a head per task, in float64."""
    tasks = sequence()
    module, strategy = learner(tasks, body, OPTIMIZERS[optimizer]), GPM(threshold=1.0, samples=None)
    strategy.attach(module, tasks)
    for index, task in enumerate(tasks):
        before = [outputs(module, tasks, old) for old in range(index + 1)]
        fixed = set(strategy.fixed)
        weights = {name: p.detach().clone() for name, p in module.named_parameters()}
        fit(strategy, module, task)
        for old in range(index):
            torch.testing.assert_close(outputs(module, tasks, old), before[old], rtol=0, atol=1e-9)
        assert (outputs(module, tasks, index) - before[index]).abs().max() > 1e-2
        moved = {name for name, p in module.named_parameters() if not torch.equal(p, weights[name])}
        assert moved.isdisjoint(fixed)
        assert any("body" in name for name in moved)


def test_without_gpm_the_old_outputs_change():
    """The same training, but nothing is protected by a threshold of 0."""
    tasks = sequence()
    module, strategy = learner(tasks), GPM(threshold=0.0, threshold_step=0.0, samples=None)
    fit(strategy, module, tasks[0])
    assert {basis.shape[1] for basis in strategy.bases.values()} == {0}
    before = outputs(module, tasks, 0)
    fit(strategy, module, tasks[1])
    assert (outputs(module, tasks, 0) - before).abs().max() > 1e-2


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_sgd_takes_the_steps_of_the_paper(optimizer):
    """Only the gradients are projected there."""
    tasks = sequence("domain", 2, examples=20)

    class ProjectGradients(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for name, layer in layers_in(pl_module).items():
                basis = strategy.bases[name]
                g = matrix_of([p.grad for p in layer.parameters()])
                g = g - g @ basis @ basis.T
                layer.weight.grad, layer.bias.grad = g[:, :-1].contiguous(), g[:, -1].contiguous()

    found = []
    for in_paper in (False, True):
        module, strategy = learner(tasks, optimizer=OPTIMIZERS[optimizer]), GPM(threshold=0.8)
        fit(strategy, module, tasks[0])
        assert all(0 < basis.shape[1] < basis.shape[0] for basis in strategy.bases.values())
        if in_paper:
            trainer([ProjectGradients()], max_epochs=3, precision="64-true").fit(module, datamodule=tasks[1])
        else:
            fit(strategy, module, tasks[1])
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_bases_are_orthonormal_and_grow(scenario):
    tasks = sequence(scenario, tasks=3)
    module, strategy, sizes = learner(tasks), GPM(threshold=0.9, threshold_step=0.02), []
    strategy.attach(module, tasks)
    for task in tasks:
        fit(strategy, module, task)
        for basis in strategy.bases.values():
            torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-12)
        sizes.append([basis.shape[1] for basis in strategy.bases.values()])
    assert set(strategy.bases) == {"net.body.1", "net.body.3"} | ({"net.head.linear"} if scenario != "task" else set())
    assert all(a <= b for before, now in pairwise(sizes) for a, b in zip(before, now, strict=True))
    assert sizes[0][0] < sizes[-1][0]


def smallest_number(rows, basis, threshold):
    """Return the fewest singular vectors of the rest of ``rows``, counted up one by one."""
    kept = torch.zeros_like(rows) if basis is None else rows @ basis @ basis.T
    u, s, vh = torch.linalg.svd(rows - kept)
    for k in range(len(s) + 1):
        approximation = u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
        if kept.square().sum() + approximation.square().sum() >= threshold * rows.square().sum() - 1e-9:
            return k
    raise AssertionError


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_a_basis_gets_the_fewest_singular_vectors(threshold):
    generator = torch.Generator().manual_seed(0)
    basis = None
    for _ in range(4):
        scales = torch.logspace(0, -3, 9, dtype=torch.double)
        rows = torch.randn(5, 9, generator=generator, dtype=torch.double) * scales
        number = smallest_number(rows, basis, threshold)
        found = extend(basis, rows, threshold, 2.0**-52)
        assert found.shape[1] == number + (0 if basis is None else basis.shape[1])
        if basis is not None:
            torch.testing.assert_close(found @ (found.T @ basis), basis, rtol=0, atol=1e-12)
        assert (rows @ found).square().sum() >= (threshold - 1e-12) * rows.square().sum()
        basis = found


def test_rounding_errors_and_zeros_add_no_directions():
    """Inputs in float32 of rank 3 have rank 3, and inputs of zero have none."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    basis = extend(None, rows.double(), 1.0, torch.finfo(torch.float32).eps)
    assert basis.shape == (20, 3)
    assert extend(basis, rows.double(), 1.0, torch.finfo(torch.float32).eps).shape == (20, 3)
    assert extend(None, torch.zeros(4, 20).double(), 1.0, 1e-16).shape == (20, 0)


def test_compressed_rows_have_the_same_products(monkeypatch):
    monkeypatch.setattr("clbench.strategies.input_space.ROWS", 4)
    rows = torch.randn(30, 7, dtype=torch.double)
    found = compress(compress(None, rows[:11]), rows[11:])
    assert found.shape == (7, 7)
    torch.testing.assert_close(found.T @ found, rows.T @ rows)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (2, 5)),
        (nn.Linear(5, 3, bias=False), (2, 4, 5)),
        (nn.Conv1d(2, 3, 3, padding="same", dilation=2), (2, 2, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
        (nn.Conv2d(2, 3, (2, 3), padding=(0, 1), padding_mode="circular", bias=False), (2, 2, 6, 5)),
        (nn.Conv2d(2, 3, 1), (2, 2, 5, 5)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
        (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 3)),
    ],
    ids=str,
)
def test_a_layer_is_the_product_of_its_rows_and_its_weights(layer, shape):
    x, layer = torch.randn(shape, dtype=torch.double), layer.double()
    rows, matrix = rows_of(layer, x), matrix_of([*layer.parameters()]).detach()
    expected = layer(x)
    groups = getattr(layer, "groups", 1)
    if not isinstance(layer, nn.Linear):
        expected = expected.flatten(2).unflatten(1, (groups, -1)).movedim(2, 3)  # (n, groups, P, O / groups)
        rows = rows.view(len(x), groups, -1, rows.shape[1])
        matrix = matrix.unflatten(0, (groups, -1))
        found = torch.einsum("ngpd,god->ngpo", rows, matrix)
    else:
        found = (rows @ matrix.T).view(expected.shape)
    torch.testing.assert_close(found, expected.detach())


def test_other_parameters_are_fixed_after_their_first_task():
    tasks = sequence()
    module, strategy = learner(tasks, "normed"), GPM()
    strategy.attach(module, tasks)
    body = {f"net.body.{name}" for name in ("embed.weight", "mix.weight", "norm.weight", "norm.bias")}
    for index in (0, 1):
        fit(strategy, module, tasks[index])
        heads = {f"net.head.heads.{k}.{p}" for k in range(index + 1) for p in ("weight", "bias")}
        assert strategy.fixed == body | heads
        assert set(strategy.bases) == {"net.body.out"}


def test_batch_norm_that_follows_later_tasks_is_refused():
    tasks = sequence()
    torch.manual_seed(0)
    body = mlp(tasks.shape, (40, 12), batch_norm=True)
    module = Learner(Net(body, tasks.scenario.build_head(12, tasks.sizes)), PLAIN).double()
    with pytest.raises(ConfigError, match=r"^bn=train: expected freeze_after_first.*Use bn=freeze_after_first"):
        fit(GPM(), module, tasks[0])
    module.bn, strategy = "freeze_after_first", GPM(threshold=1.0, samples=None)
    fit(strategy, module, tasks[0])
    before = outputs(module, tasks, 0)
    fit(strategy, module, tasks[1])
    torch.testing.assert_close(outputs(module, tasks, 0), before, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}])
def test_old_outputs_stay_with_accumulation_and_clipping(options):
    tasks = sequence()
    module, strategy = learner(tasks, optimizer=OPTIMIZERS["adam"]), GPM(threshold=1.0, samples=None)
    fit(strategy, module, tasks[0])
    before = outputs(module, tasks, 0)
    fit(strategy, module, tasks[1], **options)
    torch.testing.assert_close(outputs(module, tasks, 0), before, rtol=0, atol=1e-9)


def test_the_threshold_grows_with_the_tasks_up_to_one(monkeypatch):
    tasks, seen = sequence("domain"), []
    monkeypatch.setattr(gpm, "extend", lambda b, r, threshold, p: seen.append(threshold) or extend(b, r, threshold, p))
    module, strategy = learner(tasks), GPM(threshold=0.7, threshold_step=0.2)
    for task in tasks:
        fit(strategy, module, task, epochs=1)
    assert seen[::3] == pytest.approx([0.7, 0.9, 1.0])


def test_samples_are_at_most_those_of_the_task():
    tasks = sequence("domain")
    module, few, many = learner(tasks), GPM(samples=3), GPM(samples=100)
    for strategy, number in ((few, 3), (many, 10)):
        fit(strategy, module, tasks[0], epochs=1)
        assert strategy.cost()["examples"] == number
    assert few.bases["net.body.1"].shape[1] <= 3


def test_a_fit_leaves_no_hooks():
    tasks = sequence("domain")
    module, strategy = learner(tasks), GPM()

    class Stop(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("stopped")

    fit(strategy, module, tasks[0], epochs=1)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(strategy, module, tasks[1], callbacks=[Stop()])
    assert strategy._handles == []
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_the_optimizer_sees_projected_gradients():
    """So the moments of Adam and the norm for clipping contain only what may change."""
    tasks, seen = sequence("domain"), []
    module, strategy = learner(tasks, optimizer=OPTIMIZERS["adam"]), GPM(threshold=0.9)

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for name, layer in layers_in(pl_module).items():
                gradient = matrix_of([p.grad for p in layer.parameters()])
                seen.append((gradient @ strategy.bases[name]).abs().max().item())
                assert gradient.abs().max() > 1e-6

    fit(strategy, module, tasks[0])
    fit(strategy, module, tasks[1], callbacks=[Look()])
    assert max(seen) < 1e-12
