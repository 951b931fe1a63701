"""Small nets whose parameters enter the computation in unusual ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

C, D, N, T = 3, 4, 7, 5


class Net(nn.Module):
    """A module made of parts and a function of (parts, x)."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weights(*shape: int) -> nn.Parameter:
    """Return a parameter with random entries."""
    return nn.Parameter(torch.randn(shape) / 2)


class Scaled(torch.autograd.Function):
    """x * w by a function with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0)


def _experts(m: Any, x: Tensor) -> Tensor:
    """Send each example to one of two experts, in rows whose number depends on the examples."""
    gate = m.gate(x)
    out = torch.zeros_like(x)
    for i, expert in enumerate((m.a, m.b)):
        mine = gate.argmax(1) == i
        out = out.index_put((mine.nonzero()[:, 0],), expert(x[mine]) * gate[mine][:, i : i + 1])
    return m.head(out)


def _head() -> nn.Linear:
    return nn.Linear(D, C)


def _steps(m: Any, x: Tensor) -> Tensor:
    h, c = x.new_zeros(len(x), D), x.new_zeros(len(x), D)
    for t in range(T):
        h, c = m.cell(x[:, t], (h, c))
    return m.head(h)


def _cosine(m: Any, x: Tensor) -> Tensor:
    return m.scale * F.normalize(x, dim=1) @ F.normalize(m.w, dim=1).t()


def _tied(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.body(m.table(x)))
    return F.linear(h, m.table.weight).mean(1)[:, :C]


def _factors(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.addmm(m.b, x, m.w, beta=0.5, alpha=3.0))


def _positions(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.baddbmm(m.b, x.transpose(0, 1), m.w, beta=0.5, alpha=3.0).mean(0))


def _complex(x: Tensor) -> Tensor:
    return torch.complex(x, 2 * x.flip(-1))


def _real(z: Tensor) -> Tensor:
    return z.real + z.imag.flip(-1)


def _complex_weights(m: Any, x: Tensor) -> Tensor:
    """Multiply and divide by complex numbers that are made of real parameters."""
    x, w, v = _complex(x), torch.view_as_complex(m.w), torch.complex(m.a, m.b)
    return m.head(_real(x @ w) + _real(x * v) + _real(x.conj() / v))


def _complex_inputs(m: Any, x: Tensor) -> Tensor:
    """Multiply complex numbers by real parameters."""
    x = _complex(x)
    return m.head(_real((x * m.a + m.b) ** 2) + _real(x * m.a.to(x.dtype)) + _real(F.linear(x, m.w.to(x.dtype))))


def _spectrum(m: Any, x: Tensor) -> Tensor:
    f = torch.fft.rfft(x, dim=1) * torch.view_as_complex(m.w)
    return m.head(torch.fft.irfft(f, n=T, dim=1)[:, 1])


def _between(m: Any, x: Tensor) -> Tensor:
    """Apply a layer to rows of (position, example, copy), of which the outputs read the third copy only."""
    copies = torch.stack([x * i for i in range(1, N + 1)], 2).transpose(0, 1)
    return m.head(torch.tanh(m.body(copies.flatten(0, 2))).view(T, len(x), N, D)[:, :, 2].mean(0))


def _limits_between(m: Any, x: Tensor) -> Tensor:
    rows = torch.stack([x, 2 * x], 2).transpose(0, 1).flatten(0, 2)
    return m.head(torch.clamp(rows, max=m.w).view(T, len(x), 2, D).mean((0, 2)))


def _joined_between(m: Any, x: Tensor) -> Tensor:
    """Apply a layer to rows whose order no view shows: twice all examples, three rows each, of which the last one is read."""
    n, rows = len(x), torch.stack([x, 2 * x, 3 * x], 1).flatten(0, 1)
    a, b = torch.tanh(m.body(torch.cat([rows, rows * 2]))).split([3 * n, 3 * n])
    return m.head(a[2::3] + b[2::3])


FLAT, SEQUENCE, TOKENS = (D,), (T, D), "tokens"


def _columns(m: Any, x: Tensor) -> Tensor:
    return m.head(m.w[:, x].mean((0, 2))[:, None].expand(-1, D))


def _sums(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.sub(x, m.w, alpha=3) * torch.add(x, m.v, alpha=3) + torch.sub(m.w, x))


ODD: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "sums with factors": (lambda: Net(_sums, head=_head(), w=weights(D), v=weights(D)), FLAT),
    "product with factors": (lambda: Net(_factors, head=_head(), w=weights(D, D), b=weights(D)), FLAT),
    "weights per position": (lambda: Net(_positions, head=_head(), w=weights(T, D, D), b=weights(T, 1, D)), SEQUENCE),
    "table with two indices": (
        lambda: Net(lambda m, x: m.head(m.w[x, x.flip(1)].mean(1)), head=_head(), w=weights(6, 6, D)),
        TOKENS,
    ),
    "table read from its end": (
        lambda: Net(lambda m, x: m.head(m.w[1 - x].mean(1)), head=_head(), w=weights(6, D)),
        TOKENS,
    ),
    "columns of a table": (lambda: Net(_columns, head=_head(), w=weights(3, 6)), TOKENS),
    "scalar parameter": (lambda: Net(lambda m, x: m.head(x) * m.s, head=_head(), s=weights()), FLAT),
    "power of a parameter": (lambda: Net(lambda m, x: m.head(x.abs() ** m.p.exp()), head=_head(), p=weights(D)), FLAT),
    "product of parameters": (
        lambda: Net(
            lambda m, x: m.head(x @ (m.w + m.a @ m.b)), head=_head(), w=weights(D, D), a=weights(D, 2), b=weights(2, D)
        ),
        FLAT,
    ),
    "parameter on the left": (lambda: Net(lambda m, x: m.head((m.w @ x.t()).t()), head=_head(), w=weights(D, D)), FLAT),
    "matrix times vector": (lambda: Net(lambda m, x: m.head(x) + (x @ m.v)[:, None], head=_head(), v=weights(D)), FLAT),
    "pooled by a vector": (
        lambda: Net(lambda m, x: m.head((x * (x @ m.v).softmax(1)[..., None]).sum(1)), head=_head(), v=weights(D)),
        SEQUENCE,
    ),
    "addcmul": (
        lambda: Net(
            lambda m, x: m.head(torch.addcmul(m.b, x, m.w, value=2) + torch.addcmul(x, m.w, x)),
            head=_head(),
            w=weights(D),
            b=weights(1),
        ),
        FLAT,
    ),
    "division": (
        lambda: Net(lambda m, x: m.head(x / (2 + m.w) - m.w / (2 + x.abs())), head=_head(), w=weights(D)),
        FLAT,
    ),
    "mask token": (
        lambda: Net(lambda m, x: m.head(torch.where(x[..., :1] > 0, x, m.mask).mean(1)), head=_head(), mask=weights(D)),
        SEQUENCE,
    ),
    "class token": (
        lambda: Net(
            lambda m, x: m.head(m.block(torch.cat([m.token.expand(len(x), -1, -1), x + m.place], 1))[:, 0]),
            head=_head(),
            token=weights(1, 1, D),
            place=weights(1, T, D),
            block=nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0, batch_first=True, norm_first=True),
        ),
        SEQUENCE,
    ),
    "repeated token": (
        lambda: Net(lambda m, x: m.head(x + m.t.repeat(len(x), T, 1)).mean(1), head=_head(), t=weights(1, 1, D)),
        SEQUENCE,
    ),
    "repeated rows": (
        lambda: Net(lambda m, x: m.head(x + m.t.repeat(len(x), 1, 2)).mean(1), head=_head(), t=weights(1, 1, D // 2)),
        SEQUENCE,
    ),
    "a row behind the examples": (
        lambda: Net(
            lambda m, x: m.head(torch.tanh(m.body(torch.cat([x, m.t]))))[:-1],
            head=_head(),
            body=nn.Linear(D, D),
            t=weights(1, D),
        ),
        FLAT,
    ),
    "a sum over the batch that does not count": (
        lambda: Net(lambda m, x: m.head(x) + 0 * m.body(x).sum(0), head=_head(), body=nn.Linear(D, C)),
        FLAT,
    ),
    "attention over different inputs": (
        lambda: Net(
            lambda m, x: m.head(m.att(x, x.flip(1), x * 2)[0].mean(1)),
            head=_head(),
            att=nn.MultiheadAttention(D, 2, batch_first=True),
        ),
        SEQUENCE,
    ),
    "attention, time first": (
        lambda: Net(
            lambda m, x: m.head(m.att(*[x.transpose(0, 1)] * 3)[0][0]), head=_head(), att=nn.MultiheadAttention(D, 2)
        ),
        SEQUENCE,
    ),
    "weights per head": (
        lambda: Net(
            lambda m, x: m.head(torch.einsum("nti,hio->nho", x, m.w).mean(1)), head=_head(), w=weights(2, D, D)
        ),
        SEQUENCE,
    ),
    "bilinear": (lambda: Net(lambda m, x: m.b(x, x.flip(1)), b=nn.Bilinear(D, D, C)), FLAT),
    "views of one parameter": (
        lambda: Net(
            lambda m, x: m.head(F.linear(torch.tanh(F.linear(x, m.w[:D])), m.w[1:], m.w[0])),
            head=_head(),
            w=weights(D + 1, D),
        ),
        FLAT,
    ),
    "cosine classifier": (lambda: Net(_cosine, w=weights(C, D), scale=weights()), FLAT),
    "tied table": (lambda: Net(_tied, table=nn.Embedding(6, D), body=nn.Linear(D, D)), TOKENS),
    "indexed table": (lambda: Net(lambda m, x: m.head(m.w[x - 2].mean(1)), head=_head(), w=weights(6, D)), TOKENS),
    "gathered table": (
        lambda: Net(
            lambda m, x: m.head(m.w.index_select(0, x.flatten()).view(*x.shape, D).mean(1)),
            head=_head(),
            w=weights(6, D),
        ),
        TOKENS,
    ),
    "table scaled by frequency": (
        lambda: Net(
            lambda m, x: m.head(m.table(x).mean(1)), head=_head(), table=nn.Embedding(6, D, scale_grad_by_freq=True)
        ),
        TOKENS,
    ),
    "bag of rows": (lambda: Net(lambda m, x: m.head(m.bag(x)), head=_head(), bag=nn.EmbeddingBag(6, D)), TOKENS),
    "weighted bag of rows": (
        lambda: Net(
            lambda m, x: m.head(m.bag(x.flatten(), torch.arange(len(x)) * T, m.s[x].flatten())),
            head=_head(),
            bag=nn.EmbeddingBag(6, D, mode="sum"),
            s=weights(6),
        ),
        TOKENS,
    ),
    "bag of maxima": (
        lambda: Net(lambda m, x: m.head(m.bag(x)), head=_head(), bag=nn.EmbeddingBag(6, D, mode="max")),
        TOKENS,
    ),
    "distances": (lambda: Net(lambda m, x: -torch.cdist(x, m.w), w=weights(C, D)), FLAT),
    "generalised mean": (
        lambda: Net(
            lambda m, x: m.head(x.clamp(min=0).pow(m.p).mean(1)), head=_head(), p=nn.Parameter(torch.full((1,), 3.0))
        ),
        SEQUENCE,
    ),
    "complex weights": (
        lambda: Net(_complex_weights, head=_head(), w=weights(D, D, 2), a=weights(D), b=weights(D)),
        FLAT,
    ),
    "complex inputs": (lambda: Net(_complex_inputs, head=_head(), w=weights(D, D), a=weights(D), b=weights(D)), FLAT),
    "spectrum": (lambda: Net(_spectrum, head=_head(), w=weights(T // 2 + 1, D, 2)), SEQUENCE),
    "examples between other dimensions": (lambda: Net(_between, head=_head(), body=nn.Linear(D, D)), SEQUENCE),
    "examples between others, without a rule": (lambda: Net(_limits_between, head=_head(), w=weights(D)), SEQUENCE),
    "examples between others, joined": (lambda: Net(_joined_between, head=_head(), body=nn.Linear(D, D)), FLAT),
    "lstm": (
        lambda: Net(lambda m, x: m.head(m.r(x)[0][:, -1]), head=_head(), r=nn.LSTM(D, D, 2, batch_first=True)),
        SEQUENCE,
    ),
    "gru, both directions": (
        lambda: Net(
            lambda m, x: m.head(m.r(x)[0].mean(1)),
            head=nn.Linear(2 * D, C),
            r=nn.GRU(D, D, batch_first=True, bidirectional=True),
        ),
        SEQUENCE,
    ),
    "rnn, time first": (
        lambda: Net(lambda m, x: m.head(m.r(x.transpose(0, 1))[0][-1]), head=_head(), r=nn.RNN(D, D)),
        SEQUENCE,
    ),
    "lstm with projection": (
        lambda: Net(
            lambda m, x: m.head(m.r(x)[0][:, -1]), head=nn.Linear(2, C), r=nn.LSTM(D, D, proj_size=2, batch_first=True)
        ),
        SEQUENCE,
    ),
    "cell in a loop": (lambda: Net(_steps, head=_head(), cell=nn.LSTMCell(D, D)), SEQUENCE),
    "transposed convolution": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, C),
        ),
        (2, 4, 4),
    ),
    "convolution in 3 dimensions": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 4, (2, 3, 1), padding=(1, 0, 0), stride=(1, 2, 1)),
            nn.Tanh(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(4, C),
        ),
        (1, 3, 5, 4),
    ),
    "depthwise convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, C)
        ),
        (4, 4, 4),
    ),
    "convolution over frames": (
        lambda: Net(
            lambda m, x: m.head(torch.relu(m.conv(x.flatten(0, 1))).mean((2, 3)).view(len(x), T, -1).mean(1)),
            head=_head(),
            conv=nn.Conv2d(2, D, 2),
        ),
        (T, 2, 3, 3),
    ),
    "weight norm of a convolution": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv1d(2, 4, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(8, C)
        ),
        (2, 4),
    ),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(D, D)), nn.Tanh(), _head()), FLAT),
    "orthogonal weights": (
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(D, D)), nn.Tanh(), _head()),
        FLAT,
    ),
    "rms norm": (lambda: nn.Sequential(nn.Linear(D, D), nn.RMSNorm(D), nn.Tanh(), _head()), FLAT),
    "instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True), nn.Conv1d(2, 2, 2), nn.Flatten(), nn.Linear(6, C)),
        (2, 4),
    ),
    "prelu": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.PReLU(3), nn.Flatten(), nn.Linear(9, C), nn.PReLU()),
        (2, 4),
    ),
    "two views of each example": (
        lambda: Net(
            lambda m, x: m.head(torch.tanh(m.body(torch.cat([x, x.flip(1)])))).view(2, len(x), C).mean(0),
            head=_head(),
            body=nn.Linear(D, D),
        ),
        FLAT,
    ),
    "interleaved views": (
        lambda: Net(
            lambda m, x: m.head(torch.tanh(m.body(x.repeat_interleave(2, 0)))).view(len(x), 2, C).mean(1),
            head=_head(),
            body=nn.Linear(D, D),
        ),
        FLAT,
    ),
    "checkpointed": (
        lambda: Net(
            lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False)),
            head=_head(),
            body=nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)),
        ),
        FLAT,
    ),
    "a function with its own backward pass": (
        lambda: Net(lambda m, x: m.head(Scaled.apply(x, m.w)), head=_head(), w=weights(D)),
        FLAT,
    ),
    "experts": (lambda: Net(_experts, gate=nn.Linear(D, 2), a=nn.Linear(D, D), b=nn.Linear(D, D), head=_head()), FLAT),
    "dead layer": (
        lambda: Net(
            lambda m, x: m.head(x.mean(1)) + 0 * m.dead(x).sum((1, 2))[:, None], head=_head(), dead=nn.Linear(D, D)
        ),
        SEQUENCE,
    ),
    "batch second": (
        lambda: Net(
            lambda m, x: m.head(
                torch.tanh(m.body(x.permute(1, 2, 0).transpose(1, 2).reshape(-1, D))).view(T, len(x), D).mean(0)
            ),
            head=_head(),
            body=nn.Linear(D, D),
        ),
        SEQUENCE,
    ),
}


def inputs(shape: Any) -> Tensor:
    """Return N random inputs."""
    return torch.randint(2, 6, (N, T)) if shape == TOKENS else torch.randn(N, *shape, dtype=torch.float64)
