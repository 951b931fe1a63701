"""Every estimator compared with the loops of tests/references.py, in float64, and with other libraries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clbench.importance import fisher, fisher_and_error, mas, mas_and_error
from tests import references
from tests.importance.nets import NETS, N, batched, build

names = pytest.mark.parametrize("name", NETS)
labels = pytest.mark.parametrize("labels", ["exact", "empirical", "predicted", "weighted", "reversed"])


def close(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 1e-10, atol: float = 1e-13) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@names
@labels
def test_fisher_equals_the_double_loop_over_examples_and_labels(name: str, labels: str) -> None:
    net, x, y = build(name)
    close(fisher(net, batched(x, y, 4), labels=labels), references.fisher(net, x, y, labels))


@names
def test_mas_equals_the_loop_over_examples(name: str) -> None:
    net, x, y = build(name)
    close(mas(net, batched(x, y, 4)), references.mas(net, x))


@names
@pytest.mark.parametrize("labels", ["exact", "weighted", "reversed"])
def test_errors_equal_the_error_of_the_mean_of_the_loop(name: str, labels: str) -> None:
    net, x, y = build(name)
    values = references.per_example(net, x, y, labels, "cross_entropy")
    mean, error = fisher_and_error(net, batched(x, y, 4), labels=labels)
    close(mean, references.mean(values))
    close(error, references.standard_error(values, N), rtol=1e-6, atol=1e-9)


@names
def test_errors_of_mas_equal_the_error_of_the_loop(name: str) -> None:
    net, x, y = build(name)
    values = references.per_example_mas(net, x)
    mean, error = mas_and_error(net, batched(x, y, 3))
    close(mean, references.mean(values))
    close(error, references.standard_error(values, N), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.Conv1d(1, 2, 5), nn.Embedding(10, 4)])
def test_errors_in_float32_are_right_for_almost_equal_examples(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()  # type: ignore[operator]
    x = 1 + 1e-3 * torch.randn(200, 8)
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(8 if isinstance(layer, nn.Conv1d) else 4, 2))
    if isinstance(layer, nn.Conv1d):
        x = x[:, None]
    if isinstance(layer, nn.Embedding):
        x = torch.arange(200)[:, None] % 10
        layer.weight.data.mul_(1e-3).add_(1)
    mean, error = fisher_and_error(net, [(x,)])
    exact_mean, exact_error = fisher_and_error(net.double(), [(x if x.dtype == torch.int64 else x.double(),)])
    for name in mean:
        assert mean[name].dtype == error[name].dtype == torch.float32
        torch.testing.assert_close(mean[name].double(), exact_mean[name], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(error[name].double(), exact_error[name], rtol=0.02, atol=0)


def test_error_of_a_subsample_has_finite_population_correction() -> None:
    net, x, y = build("mlp")
    _, error = fisher_and_error(net, batched(x, y, 4), samples=5)
    keys = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    used = keys.argsort()[:5].sort().values
    values = references.per_example(net, x[used], y[used], "exact", "cross_entropy")
    close(error, references.standard_error(values, N), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_bernoulli_fisher_equals_the_loop(labels: str, shape: tuple[int, ...]) -> None:
    _, x, y = build("mlp")
    net, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double(), y.clamp(max=1)
    result = fisher(net, [(x, y.reshape(shape))], labels=labels, loss="binary_cross_entropy")
    close(result, references.fisher(net, x, y, labels, "binary_cross_entropy"))


def test_exact_bernoulli_fisher_equals_its_formula() -> None:
    """The formula is the mean of p (1 - p) times the squared gradient of the logit."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 1).double(), torch.randn(6, 3, dtype=torch.float64)
    p = net(x).sigmoid().detach()
    expected = (p * (1 - p) * x.square()).mean(0, keepdim=True)
    torch.testing.assert_close(fisher(net, [x], loss="binary_cross_entropy")["weight"], expected)


@pytest.mark.parametrize("labels", ["exact", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "twice"])
def test_mse_fisher_equals_the_loop(name: str, labels: str) -> None:
    net, x, _ = build(name)
    y = torch.randn(N, 3, dtype=torch.float64)
    close(fisher(net, [(x, y)], labels=labels, loss="mse"), references.fisher(net, x, y, labels, "mse"))


def test_exact_mse_fisher_equals_its_formula() -> None:
    """The formula is the mean of 2 / C times the sum of the squared gradients of the C outputs."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 4).double(), torch.randn(6, 3, dtype=torch.float64)
    expected = (2 / 4 * x.square()).mean(0).expand(4, 3)
    torch.testing.assert_close(fisher(net, [x], loss="mse")["weight"], expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_sampled_labels_average_to_the_exact_fisher(loss: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(3, 1 if loss == "binary_cross_entropy" else 3).double(), torch.randn(5, 3, dtype=torch.float64)
    exact = fisher(net, [x], loss=loss)
    many = fisher(net, [x], loss=loss, labels="sample", label_samples=20_000)
    for name in exact:
        torch.testing.assert_close(many[name], exact[name], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("labels", ["empirical", "predicted", "reversed"])
def test_fisher_batch_squares_mean_gradients_of_shuffled_groups(size: int, labels: str) -> None:
    net, x, y = build("conv2d")
    net.eval()
    order = torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64).argsort()
    squares: dict[str, Tensor] = {}
    absolutes: dict[str, Tensor] = {}
    for group in order.split(size):
        z = net(x[group])
        target = z.argmax(1) if labels == "predicted" else y[group]
        logits = -z if labels == "reversed" else z
        for n, g in references.gradients(net, references.nll(logits, target, "cross_entropy")).items():
            squares[n] = squares.get(n, 0) + len(group) / N * g.square()
        for n, g in references.gradients(net, z.square().sum(1).mean()).items():
            absolutes[n] = absolutes.get(n, 0) + len(group) / N * g.abs()
    net.train()
    close(fisher(net, batched(x, y, 4), labels=labels, fisher_batch=size, seed=3, chunk=2), squares)
    close(mas(net, batched(x, y, 4), fisher_batch=size, seed=3), absolutes)


def test_two_opposite_gradients_do_not_cancel_in_mas() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    net2 = nn.Linear(1, 2).double()
    net2.weight.data.zero_()
    net2.bias.data.fill_(1.0)  # d||z||^2/dW = 2 z x has opposite signs for the two examples
    assert mas(net2, [x])["weight"].min() == 2.0
    assert mas(net2, [x], fisher_batch=2)["weight"].max() == 0.0
    assert mas(net, [x])["weight"].min() > 0


@pytest.mark.parametrize("labels", ["weighted", "reversed"])
def test_masked_outputs_do_not_compete_negated_or_not(labels: str) -> None:
    """Outputs of -inf, which a task does not have, give the result of the net without these outputs."""
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 4).double(), torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    mask = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    result = fisher(net, [(x, y)], labels=labels, outputs=lambda module, batch: (module(batch[0]) + mask, batch[1]))
    smaller = nn.Linear(3, 2).double()
    smaller.load_state_dict({name: p[:2] for name, p in net.state_dict().items()})
    expected = references.fisher(smaller, x, y, labels)
    close({name: f[:2] for name, f in result.items()}, expected)
    assert all(not f[2:].any() for f in result.values())


def test_weighted_fisher_is_one_term_of_the_exact_fisher() -> None:
    net, x, _ = build("mlp")
    terms = [fisher(net, [(x, torch.full((N,), c))], labels="weighted") for c in range(3)]
    close({name: sum(t[name] for t in terms) for name in terms[0]}, fisher(net, [x]))


def test_reversed_importance_is_large_where_the_net_is_certain() -> None:
    """The gradient at the logits of a certain right label is e_y - softmax(-z), about (1, -1) for two classes."""
    net = nn.Linear(1, 2).double()
    net.weight.data.zero_()
    net.bias.data.copy_(torch.tensor([20.0, -20.0]))
    batch = (torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(fisher(net, [batch], labels="reversed")["bias"], torch.ones(2, dtype=torch.float64))
    assert fisher(net, [batch], labels="empirical")["bias"].max() < 1e-30


@pytest.mark.parametrize("labels", ["weighted", "reversed"])
def test_ignored_examples_do_not_count_with_true_labels(labels: str) -> None:
    net, x, y = build("mlp")
    y[2] = -100
    kept = y >= 0
    close(fisher(net, batched(x, y, 4), labels=labels), references.fisher(net, x[kept], y[kept], labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_fisher_is_right_where_probabilities_underflow(dtype: torch.dtype) -> None:
    """It stays finite there too."""
    net = nn.Linear(1, 4).to(dtype)
    net.weight.data.zero_()
    net.bias.data.copy_(torch.tensor([0.0, -2000.0, 1.0, float("-inf")]))
    p = net.bias.detach().softmax(0)
    result = fisher(net, [torch.ones(2, 1, dtype=dtype)])["bias"]
    torch.testing.assert_close(result, p * (1 - p))


def test_exact_bernoulli_is_finite_where_probabilities_underflow() -> None:
    net = nn.Linear(1, 1)
    net.weight.data.fill_(1000.0)
    result = fisher(net, [torch.tensor([[1.0], [-1.0]])], loss="binary_cross_entropy")
    assert all(bool(v.isfinite().all()) for v in result.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_accumulate_in_float32(dtype: torch.dtype) -> None:
    net, x, y = build("mlp")
    reference = references.fisher(net, x, y)
    half = net.to(dtype)
    result = fisher(half, [(x.to(dtype), y)] * 50)
    for name, value in result.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), reference[name], rtol=0.1, atol=0.01)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_empirical_fisher_equals_backpack() -> None:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).double()
    x, y = torch.randn(8, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    ours = fisher(net, [(x, y)], labels="empirical")
    net, loss = extend(net), extend(nn.CrossEntropyLoss(reduction="sum"))
    with backpack(SumGradSquared()):
        loss(net(x), y).backward()
    close(ours, {name: p.sum_grad_squared / 8 for name, p in net.named_parameters()})


def test_exact_fisher_equals_nngeometry() -> None:
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(8, 2, 4, 4), torch.randint(0, 3, (8,))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    theirs = FIM(model=net, loader=loader, representation=PMatDiag, variant="classif_logits").get_diag()
    ours = torch.cat([v.flatten() for v in fisher(net, [(x, y)]).values()])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)  # nngeometry computes in float32
