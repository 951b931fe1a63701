"""Kronecker factors of the Fisher, compared with loops over examples, labels and positions in float64."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from clbench.importance import fisher, kronecker_fisher
from clbench.importance.matrix_layers import MatrixLayer
from tests import references
from tests.importance.nets import NETS, batched, build
from tests.importance.test_exactness import close

BIASED = {
    "linear": [""],
    "mlp": ["0.", "2."],
    "normed": ["0.", "7."],
    "conv1d": ["0.", "2.", "4."],
    "conv2d": ["0.", "7.", "9."],
    "sequence": ["3.", "6."],
    "tied": ["head."],
    "twice": ["head."],
    "two names": ["net.0.", "net.2."],
    "repeated": ["3."],
    "heads": ["body.", "heads.0."],
    "attention": ["block.self_attn.in_proj_", "block.self_attn.out_proj.", "block.linear1.", "block.linear2.", "head."],
    "time first": ["a.", "head."],
    "in place": ["a.", "head."],
    "branching": ["head."],
    "parametrized": ["2."],
}
"""The layers with a bias."""

UNBIASED = {"normed": ["4."], "conv2d": ["5."], "heads": ["dead."]}
"""The layers without one. ``dead`` has a bias that is not added to the product that reaches the outputs."""

FUNCTIONAL = {"dead.weight", "block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight"}
"""The layers whose module is not called, so that the hooks of the reference do not see them."""


def layers_of(name: str) -> set[MatrixLayer]:
    with_bias = {MatrixLayer(f"{layer}weight", f"{layer}bias") for layer in BIASED[name]}
    return with_bias | {MatrixLayer(f"{layer}weight", None) for layer in UNBIASED.get(name, [])}


def equals_the_loop(name: str, labels: str, size: int) -> None:
    net, x, y = build(name)
    diagonal, factors = kronecker_fisher(net, batched(x, y, size), labels=labels)
    assert factors.keys() == layers_of(name)
    reference = references.kronecker(net, x, y, labels)
    for layer, pair in factors.items():
        if layer.weight not in FUNCTIONAL:
            for found, wanted in zip(pair, reference[str(layer.weight)], strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13, msg=lambda m, at=layer: f"{at}: {m}")
    wanted = references.fisher(net, x, y, labels)
    names = {parameter for layer in factors for parameter in layer.names}
    close(diagonal, {parameter: f for parameter, f in wanted.items() if parameter not in names})


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted", "weighted", "reversed"])
def test_factors_equal_the_loop_over_examples_and_positions(name, labels):
    equals_the_loop(name, labels, 4)


@pytest.mark.parametrize("name", ["mlp", "conv1d", "time first", "attention"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_factors_do_not_depend_on_the_batch_size(name, size):
    """With 7 examples, batches of 2 and 3 leave a last batch of a single example."""
    equals_the_loop(name, "exact", size)


def test_inputs_are_added_once_for_many_classes():
    """The 19 columns are processed in two blocks."""
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 20).double(), torch.randn(5, 3, dtype=torch.double), torch.arange(5)
    (pair,) = kronecker_fisher(net, [x]).factors.values()
    torch.testing.assert_close(tuple(pair), references.kronecker(net, x, y)["weight"])


class Coupled(nn.Linear):
    """A layer that subtracts the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_two_examples_that_depend_on_each_other_are_refused():
    with pytest.raises(ValueError, match="change with the other examples"):
        kronecker_fisher(Coupled(3, 2), [torch.randn(2, 3)])


def test_label_samples_do_not_depend_on_the_batch_size():
    net, x, y = build("mlp")
    one, other = (kronecker_fisher(net, batched(x, y, n), labels="sample", chunk=n).factors for n in (1, 7))
    for layer, pair in one.items():
        torch.testing.assert_close(pair, other[layer])


@pytest.mark.parametrize("bias", [True, False])
def test_the_fisher_of_a_softmax_and_one_example_is_the_product(bias):
    """With one example and one position, the Fisher of a linear layer is exactly A kron G."""
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3, bias=bias).double(), torch.randn(1, 4, dtype=torch.double)
    ((layer, (a, g)),) = kronecker_fisher(net, [x]).factors.items()
    whole = torch.zeros(12 + 3 * bias, 12 + 3 * bias, dtype=torch.double)
    z = net(x)
    for c, p in enumerate(z.softmax(1)[0].detach()):
        grads = torch.autograd.grad(z.log_softmax(1)[0, c], list(net.parameters()), retain_graph=True)
        by_column = torch.cat([part.reshape(3, -1) for part in grads], 1).T.flatten()
        whole += p * torch.outer(by_column, by_column)
    torch.testing.assert_close(torch.kron(a, g), whole, rtol=1e-12, atol=1e-15)
    assert layer.bias == ("bias" if bias else None)


def test_the_diagonal_of_one_example_is_the_diagonal_fisher():
    net, x, y = build("mlp")
    of_one = fisher(net, [(x[:1], y[:1])])
    for layer, (a, g) in kronecker_fisher(net, [(x[:1], y[:1])]).factors.items():
        diagonal = torch.outer(g.diag(), a.diag())
        torch.testing.assert_close(diagonal[:, :-1], of_one[str(layer.weight)])
        torch.testing.assert_close(diagonal[:, -1], of_one[str(layer.bias)])


def test_examples_that_do_not_count_are_left_out_of_both_factors():
    net, x, y = build("mlp")
    counted, dropped = y.clone(), torch.tensor([1, 4])
    counted[dropped] = -100
    kept = torch.ones(len(x)).bool()
    kept[dropped] = False
    found = kronecker_fisher(net, batched(x, counted, 3), labels="empirical").factors
    for layer, pair in kronecker_fisher(net, [(x[kept], y[kept])], labels="empirical").factors.items():
        torch.testing.assert_close(pair, found[layer])


def test_a_weight_without_factors_is_named_in_one_line(caplog):
    net, x, y = build("conv2d")
    with caplog.at_level(logging.WARNING):
        kronecker_fisher(net, batched(x, y, 3))
    (record,) = [r for r in caplog.records if "Kronecker" in r.getMessage()]
    assert record.getMessage().startswith("3.weight: the diagonal Fisher is used instead")


def test_a_transposed_convolution_has_the_diagonal():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(15, 3)).double()
    x = torch.randn(5, 2, 4, dtype=torch.double)
    diagonal, factors = kronecker_fisher(net, [x])
    close(diagonal, {name: f for name, f in fisher(net, [x]).items() if name.startswith("0.")})
    assert set(factors) == {MatrixLayer("2.weight", "2.bias")}


def test_a_convolution_that_is_called_twice_has_the_diagonal():
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 2, 1)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 2, 4, dtype=torch.double)
    diagonal, factors = kronecker_fisher(net, [x])
    close(diagonal, {name: f for name, f in fisher(net, [x]).items() if name.startswith("0.")})
    assert set(factors) == {MatrixLayer("4.weight", "4.bias")}


class Columns(nn.Module):
    """A weight of shape (I, O), and one that multiplies examples in columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 5))
        self.c = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.b @ torch.tanh(torch.addmm(x.new_zeros(5), x, self.a)).T).T + self.c


def test_weights_in_other_orientations_have_the_same_factors():
    torch.manual_seed(0)
    net, x = Columns().double(), torch.randn(5, 4, dtype=torch.double)
    same = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)).double()
    same[0].weight.data, same[2].weight.data, same[2].bias.data = net.a.data.T, net.b.data, net.c.data
    one, other = kronecker_fisher(net, [x]).factors, kronecker_fisher(same, [x]).factors
    for found, wanted in ((("a", None, True), ("0.weight", None)), (("b", None), ("2.weight", "2.bias"))):
        a, g = other[MatrixLayer(*wanted)]
        size = len(one[MatrixLayer(*found)].inputs)
        torch.testing.assert_close(tuple(one[MatrixLayer(*found)]), (a[:size, :size], g))


@pytest.mark.parametrize("name", ["mlp", "conv1d", "time first"])
def test_mixed_precision_finds_the_same_layers(name):
    net, x, y = build(name)
    net, x = net.float(), x.float()

    def outputs(module: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return module(batch[0]), batch[1]

    wanted = kronecker_fisher(net, [(x, y)], labels="empirical").factors
    found = kronecker_fisher(net, [(x, y)], labels="empirical", outputs=outputs).factors
    assert found.keys() == wanted.keys()
    for layer, pair in found.items():
        for one, other in zip(pair, wanted[layer], strict=True):
            assert (one - other).norm() < 0.05 * other.norm()


def test_a_group_of_examples_has_no_factors():
    net, x, y = build("mlp")
    with pytest.raises(ValueError, match="fisher_batch=2: expected 1"):
        kronecker_fisher(net, [(x, y)], labels="empirical", fisher_batch=2)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_factors_equal_those_of_backpack():
    from backpack import backpack, extend
    from backpack.extensions import KFLR

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)).double()
    x, y = torch.randn(8, 4, dtype=torch.double), torch.randint(0, 3, (8,))
    ours = kronecker_fisher(net, [(x, y)]).factors
    net, loss = extend(net), extend(nn.CrossEntropyLoss())
    with backpack(KFLR()):
        loss(net(x), y).backward()
    for layer, pair in ours.items():
        g, a = dict(net.named_parameters())[str(layer.weight)].kflr
        torch.testing.assert_close(pair.gradients, g)
        torch.testing.assert_close(pair.inputs[:-1, :-1], a)
