"""Small nets in float64: every kind of layer, and every situation in which a closed form could be wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CLASSES = 3
N = 7


class Tied(nn.Module):
    """Two layers that share a weight, and a layer that shares none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.tanh(self.a(x)))))


class Twice(nn.Module):
    """A layer that is called twice, and one whose weight is also used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(torch.tanh(self.a(x)))
        return self.head(self.b(x) + F.linear(x, self.b.weight))


class TwoNames(nn.Module):
    """A layer and a submodule with two names each, and a layer without a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, CLASSES))
        self.features, self.head = self.net[:2], self.net[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _repeated() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, CLASSES))


class Heads(nn.Module):
    """Two heads of which one is used, a frozen layer, a call whose output is not used, a parameter outside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.frozen = nn.Linear(4, 5), nn.Linear(5, 5)
        self.heads = nn.ModuleList([nn.Linear(5, CLASSES), nn.Linear(5, 2)])
        self.dead = nn.Linear(5, CLASSES)
        self.scale = nn.Parameter(torch.rand(5) + 0.5)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.frozen(self.body(x)), inplace=True) * self.scale
        self.dead(h)
        return self.heads[0](h) + F.linear(h, self.dead.weight)


class Attention(nn.Module):
    """A transformer block over a sequence, with positions that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(N, 4)  # as many positions as there are examples
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x + self.position(torch.arange(x.shape[1]))).mean(1))


class TimeFirst(nn.Module):
    """Layers with inputs (time, batch, features), with as many time steps as examples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x.transpose(0, 1)))[-1])


class InPlaceView(nn.Module):
    """A view of a layer's output that is used before an in-place change. The change redirects the graph around the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        early = h[:, 0] * 1.0
        h.relu_()
        return self.head(h.mean(1) + early)


class Branching(nn.Module):
    """Branches on values. torch.func cannot trace this, so only a loop over examples works."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.w
        if float(h.detach().sum()) > 1e9:
            h = -h
        return self.head(h)


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, stride=2, padding_mode="reflect"), nn.Tanh(), nn.Conv1d(4, 3, 2), nn.Flatten(),
        nn.Linear(9, CLASSES),
    )  # fmt: skip


def _conv2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), padding="same", padding_mode="circular", dilation=2), nn.BatchNorm2d(4),
        nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=(2, 1), groups=2, padding=(1, 0)), nn.GroupNorm(2, 6),
        nn.Conv2d(6, 4, 1, stride=2, bias=False), nn.Dropout(0.5), nn.Conv2d(4, 4, (2, 2)), nn.Flatten(),
        nn.Linear(4, CLASSES),
    )  # fmt: skip


def _normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ELU(), nn.LayerNorm(5), nn.Linear(5, 6, bias=False),
        nn.GroupNorm(3, 6), nn.Dropout(0.3), nn.Linear(6, CLASSES),
    )  # fmt: skip


def _sequence() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(6, 5, padding_idx=0), nn.LayerNorm((4, 5)), nn.BatchNorm1d(4), nn.Linear(5, 4), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


def _parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, CLASSES))


def _floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape, dtype=torch.float64)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(4, CLASSES), _floats(4)),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)), _floats(4)),
    "normed": (_normed, _floats(4)),
    "conv1d": (_conv1d, _floats(2, 8)),
    "conv2d": (_conv2d, _floats(2, 6, 6)),
    "sequence": (_sequence, lambda: torch.randint(0, 6, (N, 4))),
    "tied": (Tied, _floats(4)),
    "twice": (Twice, _floats(4)),
    "two names": (TwoNames, _floats(4)),
    "repeated": (_repeated, _floats(4)),
    "heads": (Heads, _floats(4)),
    "attention": (Attention, _floats(N, 4)),
    "time first": (TimeFirst, _floats(N, 4)),
    "in place": (InPlaceView, _floats(5, 4)),
    "branching": (Branching, _floats(4)),
    "parametrized": (_parametrized, _floats(4)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net in float64 and training mode, with statistics that are not the initial ones, inputs and targets."""
    torch.manual_seed(seed)
    make, inputs = NETS[name]
    net = make().double()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return net, inputs(), torch.randint(0, CLASSES, (N,))


def batched(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of ``size``. The last one may be smaller."""
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
