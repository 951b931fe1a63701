"""Local MAS in float64, compared with a loop over examples, and with the global form where both are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clbench.importance import mas, mas_local
from clbench.nets import cnn
from clbench.nets.heads import SlicedHead
from clbench.nets.resnet import BasicBlock
from tests.importance.nets import CLASSES, N, Tied, TimeFirst, Twice, batched
from tests.importance.test_exactness import close
from tests.importance.test_preserve_state import Fragile, same, state


def floats(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=torch.float64)


def ready(net: nn.Module) -> nn.Module:
    """Return the net in float64 and training mode, with statistics that are not the initial ones."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return net.double()


def of_layer(layer: nn.Module, pre: Tensor, post: Tensor) -> dict[str, Tensor]:
    """Return the mean over examples of |gradient of ||post||^2|, where the gradient at the layer's output is 2 post."""
    params = dict(layer.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for a, b in zip(pre, post, strict=True):
        output = layer(a[None])[0]
        grads = torch.autograd.grad(output, list(params.values()), 2 * b.detach())
        for name, g in zip(params, grads, strict=True):
            total[name] += g.abs() / len(pre)
    return total


def named(**layers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{layer}.{name}": value for layer, values in layers.items() for name, value in values.items()}


# --- equal to the global form ----------------------------------------------------------------------------------------------

ONE_LAYER: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear relu": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,)),
    "in place, without bias": (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(inplace=True)), (4,)),
    "positions": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten()), (5, 4)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten()), (2, 6)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2, padding_mode="circular"), nn.ReLU(), nn.Flatten()
        ),
        (4, 5, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_LAYER)
def test_local_mas_equals_global_mas_on_a_net_of_one_layer(name: str) -> None:
    torch.manual_seed(0)
    make, shape = ONE_LAYER[name]
    net, x = make().double(), floats(*shape)
    close(mas_local(net, [x[:3], x[3:]]), mas(net, [x]))


def test_local_mas_of_an_mlp_equals_explicit_outer_products() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES)).double(), floats(4)
    omega = mas_local(net, batched(x, torch.zeros(N), 3))
    for n, hidden in ((0, None), (2, net[:2](x))):
        pre = x if hidden is None else hidden
        post = net[n](pre).relu() if n == 0 else net[n](pre)
        for j in range(post.shape[1]):
            bias = sum(2 * abs(post[k, j].item()) for k in range(N)) / N
            assert omega[f"{n}.bias"][j].item() == pytest.approx(bias)
            for i in range(pre.shape[1]):
                weight = sum(2 * abs(pre[k, i].item() * post[k, j].item()) for k in range(N)) / N
                assert omega[f"{n}.weight"][j, i].item() == pytest.approx(weight)


# --- between a layer and its ReLU --------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Two layers and a head. ``between`` and ``relu`` follow the first layer."""

    def __init__(self, relu: Callable[[Tensor], Tensor], between: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.relu = relu
        self.between = between or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(self.relu(self.between(self.a(x))))))


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu of a keyword": lambda t: F.relu(input=t),
    "F.relu in place": lambda t: F.relu(t, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda t: t.relu(),
    "Tensor.relu_": lambda t: t.relu_(),
}
BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
    "BatchNorm": lambda: nn.BatchNorm1d(5),
    "LayerNorm": lambda: nn.LayerNorm(5),
    "GroupNorm": lambda: nn.GroupNorm(1, 5),
    "BatchNorm and dropout": lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5)),
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("between", BETWEEN)
def test_the_output_of_a_layer_is_taken_after_its_relu(relu: str, between: str) -> None:
    """A layer that no ReLU follows is linear."""
    torch.manual_seed(0)
    net, x = ready(Functional(RELUS[relu], BETWEEN[between]())), floats(4)
    omega = mas_local(net, [x])
    net.eval()
    h = net.between(net.a(x)).relu()
    b = net.b(h)
    expected = named(a=of_layer(net.a, x, h), b=of_layer(net.b, h, b), head=of_layer(net.head, b.tanh(), net(x)))
    zeros = {f"between.{name}": torch.zeros_like(p) for name, p in net.between.named_parameters()}
    close(omega, expected | zeros)


def test_batch_norm_after_the_relu_belongs_to_the_next_input() -> None:
    """It changes the input of the next layer and has no importance of its own."""
    torch.manual_seed(0)
    net, x = ready(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, CLASSES))), floats(4)
    omega = mas_local(net, [x])
    net.eval()
    h = net[0](x).relu()
    expected = {f"0.{n}": v for n, v in of_layer(net[0], x, h).items()}
    expected |= {f"3.{n}": v for n, v in of_layer(net[3], net[2](h), net(x)).items()}
    close(omega, expected | {f"2.{n}": torch.zeros(5, dtype=torch.float64) for n in ("weight", "bias")})


@pytest.mark.parametrize("pool", ["module", "function"])
def test_pooling_before_the_relu_keeps_the_output_of_the_layer(pool: str) -> None:
    """The output of the layer is its own activation, before any pooling."""
    torch.manual_seed(0)
    convolution, x = nn.Conv2d(2, 3, 3), floats(2, 6, 6)
    between = nn.MaxPool2d(2) if pool == "module" else nn.Identity()
    net = nn.Sequential(convolution, between, nn.ReLU(), nn.Flatten()).double()

    def outputs(net: nn.Module, x: Tensor) -> tuple[Tensor, None]:
        return (net(x) if pool == "module" else F.relu(F.max_pool2d(net[0](x), 2)).flatten(1)), None

    close(mas_local(net, [x], outputs=outputs), mas(nn.Sequential(convolution, nn.ReLU(), nn.Flatten()), [x]))


def test_a_residual_branch_ends_linear_with_an_in_place_sum() -> None:
    class InPlace(BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out += self.shortcut(x)
            return F.relu(out)

    torch.manual_seed(0)
    x, head = floats(2, 5, 5), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES))
    block = BasicBlock(2, 2)
    net = ready(nn.Sequential(block, head))
    omega = mas_local(net, [x])
    net.eval()
    h = block.bn1(block.conv1(x)).relu()
    assert torch.allclose(omega["0.conv1.weight"], of_layer(block.conv1, x, h)["weight"])
    assert torch.allclose(omega["0.conv2.weight"], of_layer(block.conv2, h, block.conv2(h))["weight"])
    other = InPlace(2, 2).double()
    other.load_state_dict(block.state_dict())
    close(mas_local(nn.Sequential(other, head), [x]), omega)


def test_an_input_changed_in_place_counts_as_the_layer_saw_it() -> None:
    class Net(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.inplace = inplace
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            h = self.a(x)
            h = F.relu(h) + F.relu(x, inplace=self.inplace)
            return self.b(h)

    torch.manual_seed(0)
    net, x = Net(True).double(), floats(4)
    changed = mas_local(net, [x])
    net.inplace = False
    close(changed, mas_local(net, [x]))


# --- heads, other layers, samples -----------------------------------------------------------------------------------------


def test_only_columns_that_compete_get_importance() -> None:
    """Columns of a sliced head that belong to other tasks get zeros."""
    torch.manual_seed(0)
    head, x = SlicedHead(4, [(0, 2), (2, 5)]).double(), floats(4)
    omega = mas_local(head, [x], outputs=lambda m, x: (m(x, 1), None))
    close(omega, mas(head, [x], outputs=lambda m, x: (m(x, 1), None)))
    assert omega["linear.bias"][:2].tolist() == [0, 0]
    assert (omega["linear.bias"][2:] > 0).all()


def test_layers_of_other_kinds_and_unused_layers_get_zeros() -> None:
    """Embeddings, normalisation layers and bare parameters are of other kinds."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm, self.scale = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Parameter(torch.ones(4))
            self.block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
            self.used, self.unused, self.frozen = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 4)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.frozen(self.block(self.norm(self.embedding(x)) * self.scale)).mean(1))

    torch.manual_seed(0)
    net, x = Net().double(), torch.randint(0, 6, (N, 5))
    omega = mas_local(net, [x])
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert {name: v.shape for name, v in omega.items()} == {name: p.shape for name, p in trainable.items()}
    nonzero = {name for name, value in omega.items() if value.any()}
    assert nonzero == {
        f"{layer}.{p}" for layer in ("used", "block.linear1", "block.linear2") for p in ("weight", "bias")
    }
    assert (omega["block.linear1.weight"] >= 0).all()


def test_labels_are_ignored() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2).double(), floats(4)
    close(mas_local(net, [x]), mas_local(net, [(x, torch.full((N,), 99))]))


def test_samples_draws_the_same_examples_as_the_global_form() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double(), floats(4)
    close(mas_local(net, batched(x, x, 2), samples=4, seed=7), mas(net, [x], samples=4, seed=7))


# --- laws ---------------------------------------------------------------------------------------------------------------


def convolutional() -> tuple[nn.Module, Tensor]:
    body = cnn((1, 8, 8), channels=(3, 4), width=6)
    return ready(nn.Sequential(body, nn.BatchNorm1d(6), nn.Linear(6, CLASSES))), floats(1, 8, 8)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, N))
def test_local_mas_is_independent_of_batch_size_and_order(seed: int, size: int) -> None:
    torch.manual_seed(seed)
    net, x = convolutional()
    whole = mas_local(net, [x])
    close(mas_local(net, batched(x, x, size)), whole)
    close(mas_local(net, batched(x[torch.randperm(N)], x, size)), whole)


def test_a_batch_too_large_for_the_memory_is_measured_in_pieces() -> None:
    torch.manual_seed(0)
    net, x = convolutional()
    passes: list[None] = []
    net.register_forward_hook(lambda *_: passes.append(None))
    expected = mas_local(net, [x])
    small = len(passes)
    close(mas_local(net, [x.repeat(2_000, 1, 1, 1)]), expected)
    assert len(passes) > 2 * small


@pytest.mark.parametrize("fails", [False, True])
def test_local_mas_does_not_change_the_module(fails: bool) -> None:
    torch.manual_seed(0)
    body, x = convolutional()
    net = Fragile(body)
    net(x).sum().backward()
    body[0].eval()  # different modes
    before = state(net)

    def batches() -> Any:
        yield x[:4]
        if fails:
            raise RuntimeError("the disk is gone")

    if fails:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            mas_local(net, batches())
    else:
        mas_local(net, batches())
    assert same(before, state(net))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_local_mas_works_where_gradients_are_off(context: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    net, x = convolutional()
    expected = mas_local(net, [x])
    with context():
        result = mas_local(net, [x.clone()])
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert not any(value.requires_grad or value.is_inference() for value in result.values())


def test_half_precision_is_summed_in_float32() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).bfloat16(), floats(4).bfloat16()
    omega = mas_local(net, [x])
    assert omega["0.weight"].dtype == torch.float32
    close(omega, mas(net, [x]), rtol=1e-6, atol=1e-6)


# --- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (Twice(), floats(4), "'a.bias' is used by two calls of a layer.* Use mas"),
        (Tied(), floats(4), "'a.weight' is used by two calls of a layer"),
        (TimeFirst(), floats(N, 4), r"the layer of 'a.bias' gets an input of shape \(7, 1, 4\) for 1 examples"),
        (nn.Sequential(nn.Embedding(3, 3), nn.Flatten()), torch.zeros(N, 1).long(), "no nn.Linear, nn.Conv1d or"),
        (nn.Linear(4, 2).requires_grad_(False), floats(4), "no nn.Linear, nn.Conv1d or"),
        (nn.Linear(4, 2), floats(4) * float("inf"), "importance of 'weight' is not finite"),
        (nn.Linear(4, 2), floats(4)[:0], "have 0 examples"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(net: nn.Module, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mas_local(net.double(), [x])
    assert "\n" not in str(caught.value)
