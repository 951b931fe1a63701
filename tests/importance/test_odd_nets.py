"""Every kind of net compared with the loops of tests/references.py in float64: values, errors, and how they were measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.importance import fisher, fisher_and_error, mas, rules
from clbench.importance.operation import Operation
from tests import references
from tests.conftest import others_slow
from tests.importance.nets import NETS, build
from tests.importance.odd_nets import ODD, TOKENS, C, N, inputs

WITHOUT_RULE = {
    "distances": "CdistBackward0",
    "bag of maxima": "EmbeddingBagBackward0",
    "examples between others, without a rule": "ClampBackward0",
    "table with two indices": "IndexBackward0",
    "columns of a table": "IndexBackward0",
    "a function with its own backward pass": "ScaledBackward",
}
"""Nets with an operation that has no rule, and its name."""

ONE_AT_A_TIME = {
    "experts": "the sizes",
    "a row behind the examples": "the sizes (3, 4) and (5, 4) for 2 and 4 examples",
    "a sum over the batch that does not count": "SumBackward1 mixes the examples",
}
"""Nets in which the examples cannot be located, and the reason."""

FAST = (
    "product with factors",
    "weights per position",
    "product of parameters",
    "tied table",
    "class token",
    "lstm",
    "interleaved views",
    "experts",
    "checkpointed",
    "complex weights",
    "examples between other dimensions",
    "distances",
)


def close(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 1e-11) -> None:
    """Compare relative to the largest entry of all, because some gradients are zero up to rounding (a bias before a softmax)."""
    assert a.keys() == b.keys()
    scale = max(float(value.abs().max()) for value in b.values())
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")


def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    make, shape = ODD[name]
    return make().double().eval(), inputs(shape), torch.randint(0, C, (N,))


@pytest.mark.parametrize("name", others_slow(list(ODD), *FAST))
def test_importances_equal_the_loop_over_examples(name: str) -> None:
    net, x, y = built(name)
    for labels in ("empirical", "predicted", "exact"):
        close(fisher(net, [(x, y)], labels=labels), references.fisher(net, x, y, labels))
    close(mas(net, [(x, y)]), references.mas(net, x))
    _, error = fisher_and_error(net, [(x, y)])
    close(error, references.standard_error(references.per_example(net, x, y, "exact", "cross_entropy"), N), 1e-6)


@pytest.mark.parametrize("name", others_slow(list(ODD), *FAST))
def test_a_slow_way_is_logged_with_its_reason(name: str, caplog: pytest.LogCaptureFixture) -> None:
    net, x, y = built(name)
    with caplog.at_level(logging.WARNING):
        fisher(net, [(x, y)], labels="empirical")
    if name in WITHOUT_RULE:
        assert WITHOUT_RULE[name] in caplog.text and "% of the parameters" in caplog.text
    elif name in ONE_AT_A_TIME:
        assert "one at a time" in caplog.text and ONE_AT_A_TIME[name] in caplog.text
    else:
        assert not caplog.text


def test_every_rule_is_used_by_a_net(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    for name, rule in rules.RULES.items():

        def noted(op: Operation, g: Tensor, name: str = name, rule: Any = rule) -> Any:
            used.add(name)
            return rule(op, g)

        monkeypatch.setitem(rules.RULES, name, noted)
    for net, x, _ in (*map(built, ODD), *map(build, NETS)):
        mas(net, [x])
    assert used == set(rules.RULES)


def test_bags_scaled_by_frequency_are_refused() -> None:
    with pytest.raises(ValueError, match="Use scale_grad_by_freq=False"):
        mas(nn.EmbeddingBag(6, C, scale_grad_by_freq=True), [inputs(TOKENS)])


class Hidden(torch.autograd.Function):
    """A function that computes the gradient of a parameter inside its backward pass."""

    @staticmethod
    def forward(ctx, x, layer):  # type: ignore[no-untyped-def, override]
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def, override]
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(g)
        return x.grad, None


class WithHidden(nn.Module):
    """A net with a parameter that only the backward pass of a function sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(self.first(x), self.second)  # type: ignore[no-any-return]


def test_a_parameter_hidden_inside_a_function_is_refused() -> None:
    net, x = WithHidden(), torch.randn(6, 4)
    net.second.weight.grad = torch.ones(C, 4)
    with pytest.raises(ValueError, match=r"'second.weight' gets its gradient inside HiddenBackward"):
        mas(net, [x])
    assert torch.equal(net.second.weight.grad, torch.ones(C, 4))
    assert net.first.weight.grad is None


def _scattered(h: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter(0, order[:, None].expand(-1, h.shape[1]), h)


def _permutation(order: Tensor) -> Tensor:
    return torch.eye(len(order), dtype=torch.float64)[order]


def _rolled(h: Tensor, order: Tensor) -> Tensor:
    return h.roll(int(order[0]), 0)


REORDERED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda h, order: h[order],
    "gather": lambda h, order: h.gather(0, order[:, None].expand(-1, h.shape[1])),
    "take": lambda h, order: h.take(order[:, None] * h.shape[1] + torch.arange(h.shape[1])),
    "embedding": lambda h, order: F.embedding(order, h),
    "scatter": lambda h, order: _scattered(h, order.argsort()),
    "index_put": lambda h, order: torch.zeros_like(h).index_put((order.argsort(),), h),
    "mm": lambda h, order: _permutation(order) @ h,
    "mm, transposed": lambda h, order: (h.T @ _permutation(order).T).T,
    "bmm": lambda h, order: torch.bmm(_permutation(order)[None], h[None])[0],
}
"""Functions of (values, order) that place the examples in the order."""


class Sorted(nn.Module):
    """Sorts the examples by their first entry, and sorts the outputs back."""

    def __init__(self, reordered: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.reordered = reordered
        self.table, self.head = nn.Linear(4, 4), nn.Linear(4, C)
        self.head.weight = nn.Parameter(self.table.weight[:C].detach())

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        h = self.reordered(torch.tanh(self.table(self.reordered(torch.tanh(self.table(x)), order))), order.argsort())
        return self.head(h + torch.tanh(self.table(x)))


@pytest.mark.parametrize("last", [[-1.0, 2.5, -2.0], [1.5, 2.5, 4.0]])
@pytest.mark.parametrize("name", REORDERED)
def test_examples_in_an_order_that_depends_on_their_values(name: str, last: list[float]) -> None:
    """The first four examples are sorted already, so that only a whole batch shows it. The layer is used in both orders.

    In the second case the last example keeps its place, too.
    """
    net = Sorted(REORDERED[name]).double()
    x = torch.randn(N, 4, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, *last])
    close(mas(net, [x]), references.mas(net, x))
    ordered = x.sort(0).values
    for chunk in (None, N):  # in one batch, and in two
        close(mas(net, [ordered, x], chunk=chunk), references.mas(net, torch.cat([ordered, x])))


class Rolled(nn.Module):
    """Rolls the examples by one place if the first one is positive, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift = int(x[0, 0] > 0)
        return self.table(torch.tanh(self.table(x).roll(shift, 0))).roll(-shift, 0)


def test_a_shift_that_depends_on_the_values() -> None:
    net, x = Rolled().double(), torch.randn(N, 4, dtype=torch.float64)
    x[0, 0] = -1
    both = torch.cat([x, x.abs()])
    close(mas(net, both.split(N), chunk=N), references.mas(net, both))


class Gated(nn.Module):
    """Adds a layer of two versions of each example, unless the first entry of the example is negative.

    No view shows the order of the rows of the layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.tanh(self.body(torch.cat([x, 2 * x]))).chunk(2)
        return self.head(x + (a + b) * x[:, :1].relu())


def test_an_order_that_the_first_examples_do_not_show(caplog: pytest.LogCaptureFixture) -> None:
    net, x = Gated().double(), torch.randn(N, 4, dtype=torch.float64)
    x[:4, 0], x[4:, 0] = -1, 1
    with caplog.at_level(logging.WARNING):
        close(mas(net, [x]), references.mas(net, x))
    assert "the order of the rows of AddmmBackward0 is not known" in caplog.text


class Trimmed(nn.Module):
    """Leaves out the last positions where no example of the batch has a token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x[:, : int((x > 0).any(0).sum())])).sum(1)


def test_a_length_that_depends_on_the_values(caplog: pytest.LogCaptureFixture) -> None:
    net, x = Trimmed().double(), torch.randint(1, 6, (N, 5))
    net.head.bias = None
    x[:4, 2:] = 0
    with caplog.at_level(logging.WARNING):
        close(mas(net, [x]), references.mas(net, x))
    assert "the operations on a batch are not those on its first examples" in caplog.text


def test_three_examples_show_their_places() -> None:
    net, sizes = nn.Linear(4, C), []
    net.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    mas(net, [torch.randn(3, 4)])
    assert 1 not in sizes  # none is measured alone


def test_batches_of_different_lengths(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(
        nn.Linear(4, 4), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(4, C)
    ).double()
    batches = [torch.randn(n, t, 4, dtype=torch.float64) for n, t in ((3, 5), (N, 2), (3, 2), (4, 5))]
    with caplog.at_level(logging.WARNING):
        found = mas(net, batches)
    each = [references.mas(net, x) for x in batches]
    n = sum(map(len, batches))
    close(found, {name: sum(len(x) * e[name] for x, e in zip(batches, each, strict=True)) / n for name in found})
    assert not caplog.text


def test_a_measurement_in_16_bits_adds_in_32() -> None:
    """Through views and casts of the parameters, too."""
    net, x, y = built("class token")
    reference = references.fisher(net, x, y)
    half = net.bfloat16()
    result = fisher(half, [(x.bfloat16(), y)] * 40)
    for name, value in result.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), reference[name], rtol=0.2, atol=0.01)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 4, 3, dilation=2, groups=4), (4, 9)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (4, 9, 8)),
        (nn.Conv2d(4, 4, (3, 5), stride=(1, 3), padding=(0, 2), groups=4), (4, 9, 8)),
        (nn.Conv3d(2, 4, 3, padding=1, groups=2), (2, 4, 3, 5)),
    ],
)
def test_depthwise_convolutions_in_float32(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """In float32 on a CPU they have a formula of their own."""
    torch.manual_seed(0)
    net, x, y = (
        nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(C)),
        torch.randn(N, *shape),
        torch.randint(0, C, (N,)),
    )
    net(x)
    for labels in ("empirical", "exact"):
        found = fisher(net, [(x, y)], labels=labels)
        expected = references.fisher(net.double(), x.double(), y, labels)
        close({name: f.double() for name, f in found.items()}, expected, 1e-5)
        net.float()
