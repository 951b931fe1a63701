"""Outputs with several positions (tokens, pixels, labels) compared with a loop over examples, positions and labels."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import EWC
from clbench.importance import fisher, fisher_and_error, mas
from tests import references

N, T, C = 5, 4, 3
IGNORED = -100

Params = dict[str, Tensor]


class Tagger(nn.Module):
    """A label for each token, (N, T) -> (N, T, C). The second token also depends on the first."""

    def __init__(self, classes: int = C) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        return self.head(torch.tanh(self.mix(h) + h.roll(1, 1)))  # type: ignore[no-any-return]


class Segmenter(nn.Sequential):
    """A label for each pixel, (N, 2, 3, 2) -> (N, C, 3, 2)."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, C, 1))


def tokens() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Tagger().double(), torch.randint(0, 7, (N, T)), torch.randint(0, C, (N, T))


def pixels() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Segmenter().double(), torch.randn(N, 2, 3, 2).double(), torch.randint(0, C, (N, 3, 2))


def close(a: Params, b: Params, rtol: float = 1e-10, prefix: str = "") -> None:
    scale = max(float(value.abs().max()) for value in b.values())
    for name in b:
        torch.testing.assert_close(a[prefix + name], b[name], rtol=0, atol=rtol * scale)


def squares(net: nn.Module, scalar: Tensor) -> Params:
    return {name: g.square() for name, g in references.gradients(net, scalar).items()}


def added(parts: list[Params]) -> Params:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def loop(net: nn.Module, x: Tensor, y: Tensor, labels: str, dim: int, mean: bool = False) -> list[Params]:
    """Return the Fisher of the examples that have a position that counts, for a softmax at each position."""
    values = []
    for i in range(len(x)):
        logp = net(x[i : i + 1]).log_softmax(dim).movedim(dim, -1).flatten(0, -2)  # (P, C)
        counts = [t for t, label in enumerate(y[i].flatten().tolist()) if label != IGNORED]
        if not counts:
            continue
        scale = 1 / len(counts) if mean else 1.0
        if labels == "exact":
            parts = [
                {name: logp[t, c].exp().detach() * g for name, g in squares(net, scale * logp[t, c]).items()}
                for t in counts
                for c in range(logp.shape[1])
            ]
            values.append(added(parts))
        else:
            chosen = logp.argmax(1) if labels == "predicted" else y[i].flatten()
            values.append(squares(net, scale * sum(logp[t, chosen[t]] for t in counts)))
    return values


def with_ignored(y: Tensor) -> Tensor:
    """Return targets in which some positions of the second example do not count, and none of the fourth."""
    y = y.clone()
    y[1].flatten()[1:3] = IGNORED
    y[3] = IGNORED
    return y


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
@pytest.mark.parametrize(("make", "dim"), [(tokens, -1), (pixels, 1)])
def test_fisher_of_positions_equals_the_loop(make: Callable[[], Any], dim: int, labels: str) -> None:
    net, x, y = make()
    close(fisher(net, [(x, y)], labels=labels), references.mean(loop(net, x, y, labels, dim)))
    y = with_ignored(y)
    for mean in (False, True):
        expected = loop(net, x, y, labels, dim, mean)
        options = {"labels": labels, "reduction": "mean" if mean else "sum"}
        close(fisher(net, [(x[:2], y[:2]), (x[2:], y[2:])], **options), references.mean(expected))
        found, error = fisher_and_error(net, [(x, y)], **options)
        close(found, references.mean(expected))
        close(error, references.standard_error(expected, len(expected)), 1e-6)


def test_the_classes_of_an_image_come_first_if_both_readings_fit() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Conv2d(1, 3, 1).double(), torch.randn(4, 1, 3, 3).double(), torch.randint(3, (4, 3, 3))
    expected = references.mean(loop(net, x, y, "exact", 1))
    close(fisher(net, [(x, y)]), expected)
    close(fisher(net, [x], class_dim=1), expected)
    close(fisher(net, [(x, y)], class_dim=-1), references.mean(loop(net, x, y, "exact", -1)))


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted", "sample"])
def test_a_mask_leaves_out_the_positions_that_a_target_would(labels: str) -> None:
    net, x, y = tokens()
    ignored = with_ignored(y)
    expected = fisher(net, [(x, ignored)], labels=labels)
    close(
        fisher(net, [(x, y)], labels=labels, outputs=lambda m, b: (m(b[0]), b[1], ignored[: len(b[0])] != IGNORED)),
        expected,
    )
    batch = {"x": x, "y": y, "attention_mask": (ignored != IGNORED).long()}
    close(fisher(Masked(net), [batch], labels=labels), expected)
    whole = torch.tensor([True, True, False, True, True])
    left_out = fisher(net, [(x, y)], labels=labels, outputs=lambda m, b: (m(b[0]), b[1], whole[: len(b[0])]))
    if labels != "sample":
        close(left_out, fisher(net, [(x[whole], y[whole])], labels=labels))


class Masked(nn.Module):
    """A net with the arguments of a language model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        for name, part in net.named_children():
            setattr(self, name, part)
        self.net = [net]

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.net[0](x)  # type: ignore[no-any-return]


def test_a_single_label_that_is_ignored_leaves_out_its_example() -> None:
    net, x = nn.Linear(6, 5).double(), torch.randn(4, 6).double()
    y = torch.tensor([IGNORED, 1, 2, 3])
    for labels in ("empirical", "exact", "predicted"):
        close(fisher(net, [(x, y)], labels=labels), fisher(net, [(x[1:], y[1:])], labels=labels))
        other = y.masked_fill(y == IGNORED, 9)
        close(fisher(net, [(x, other)], labels=labels, ignore_index=9), fisher(net, [(x[1:], y[1:])], labels=labels))


@pytest.mark.parametrize("size", [2, 5])
def test_groups_are_means_over_the_examples_that_count(size: int) -> None:
    net, x, y = tokens()
    y = with_ignored(y)
    order = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64).argsort()
    total: list[Params] = []
    for group in order.split(size):
        used = [int(i) for i in group if i != 3]
        if used:
            losses = [F.cross_entropy(net(x[i : i + 1])[0], y[i], ignore_index=IGNORED, reduction="sum") for i in used]
            square = squares(net, torch.stack(losses).mean())
            total.append({name: len(used) * g / (N - 1) for name, g in square.items()})
    close(fisher(net, [(x, y)], labels="empirical", fisher_batch=size), added(total))


def test_sampled_positions_are_unbiased() -> None:
    """The mean over 200 seeds is within 3 standard errors of the exact value, on a net of 4 positions."""
    net, x, _ = tokens()
    exact = fisher(net, [x], class_dim=-1)
    draws = [fisher(net, [x], labels="sample", class_dim=-1, seed=seed) for seed in range(200)]
    for name, value in exact.items():
        several = torch.stack([draw[name] for draw in draws])
        error = several.std(0) / 200**0.5
        distance = (several.mean(0) - value).abs()
        assert bool((distance <= 4 * error + 1e-12).all())
        total = several.flatten(1).sum(1)
        assert abs(total.mean() - value.sum()) < 3 * total.std() / 200**0.5


def test_the_cost_of_sampling_does_not_depend_on_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return grad(*args, **kwargs)

    counts = []
    monkeypatch.setattr(torch.autograd, "grad", counted)
    for classes in (3, 500):
        passes = 0
        fisher(Tagger(classes), [torch.zeros(64, T, dtype=torch.long)] * 3, labels="sample", class_dim=-1)
        counts.append(passes)
    assert counts[0] == counts[1]


def test_labels_may_be_drawn_inside_outputs(caplog: pytest.LogCaptureFixture) -> None:
    """The loss z - y with y = z - 1/2 has the gradient 1 at the log-likelihood of the drawn labels."""
    net, x, _ = tokens()

    def drawn(m: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        logp = m(batch).log_softmax(-1)
        y = torch.distributions.Categorical(logits=logp.detach()).sample()  # type: ignore[no-untyped-call]
        total = logp.gather(-1, y[..., None])[..., 0].sum(1, keepdim=True)
        return total, (total - 0.5).detach()

    exact = fisher(net, [x], class_dim=-1)
    sampled = fisher(net, [x.repeat(400, 1)], labels="empirical", loss="mse", outputs=drawn)
    assert "outputs draws random numbers" in caplog.text
    for name, value in exact.items():
        torch.testing.assert_close(sampled[name], value, rtol=0.2, atol=0.01)


def test_exact_over_many_positions_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    net, x, y = tokens()
    fisher(net, [(x.repeat(1, 2), y.repeat(1, 2))])
    assert f"labels=exact takes {2 * T * (C - 1)} backward passes per batch" in caplog.text


# --- several labels, numbers, and functions as losses ----------------------------------------------------------------


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
def test_several_binary_labels_equal_the_loop(labels: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, C)).double(), torch.randn(N, 6).double()
    y = torch.randint(0, 2, (N, C)).double()
    mask = torch.rand(N, C) < 0.7
    mask[0] = True
    for outputs, used in (
        (lambda m, b: (m(b[0]), b[1]), torch.ones_like(mask)),
        (lambda m, b: (m(b[0]), b[1], mask[: len(b[0])]), mask),
        (lambda m, b: (m(b[0]), b[1].masked_fill(~mask[: len(b[0])], IGNORED)), mask),
    ):
        values = []
        for i in range(N):
            z = net(x[i])
            p = z.sigmoid().detach()
            if not used[i].any():
                continue
            if labels == "exact":
                parts = [squares(net, (p[c] * (1 - p[c])).sqrt() * z[c]) for c in range(C) if used[i, c]]
                values.append(added(parts))
            else:
                target = (p > 0.5).double() if labels == "predicted" else y[i]
                values.append(
                    squares(net, F.binary_cross_entropy_with_logits(z[used[i]], target[used[i]], reduction="sum"))
                )
        found = fisher(net, [(x, y)], labels=labels, loss="binary_cross_entropy", outputs=outputs)
        close(found, references.mean(values))


def test_binary_labels_of_pixels_may_lack_the_channel() -> None:
    net, x = nn.Conv2d(2, 1, 1).double(), torch.randn(N, 2, 3, 3).double()
    y = torch.randint(0, 2, (N, 3, 3))
    options = {"labels": "empirical", "loss": "binary_cross_entropy"}
    values = [
        squares(net, F.binary_cross_entropy_with_logits(net(x[i]), y[i][None].double(), reduction="sum"))
        for i in range(N)
    ]
    for targets in (y, y[:, None]):
        close(fisher(net, [(x, targets)], **options), references.mean(values))


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_squared_error_is_a_mean_over_the_outputs_that_count(labels: str) -> None:
    net, x, _ = tokens()
    y, mask = torch.randn(N, T, C).double(), torch.rand(N, T) < 0.6
    mask[0] = True
    values = []
    for i in range(N):
        if mask[i].any():
            z, e = net(x[i : i + 1])[0][mask[i]].flatten(), int(mask[i].sum()) * C
            exact = [squares(net, (2 / e) ** 0.5 * value) for value in z]
            values.append(added(exact) if labels == "exact" else squares(net, F.mse_loss(z, y[i][mask[i]].flatten())))
    found = fisher(net, [(x, y)], labels=labels, loss="mse", outputs=lambda m, b: (m(b[0]), b[1], mask[: len(b[0])]))
    close(found, references.mean(values))


class Encoder(nn.Module):
    """Returns several outputs, as a variational autoencoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.back = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean = self.mean(x)
        return {"mean": mean, "spread": self.spread(x), "x": self.back(mean)}


def bound(out: dict[str, Tensor], x: Tensor) -> Tensor:
    divergence = (out["mean"].square() + out["spread"].exp() - out["spread"] - 1).sum(1) / 2
    return (out["x"] - x).square().sum(1) + divergence


def test_a_loss_may_be_a_function_of_all_outputs() -> None:
    torch.manual_seed(0)
    net, x = Encoder().double(), torch.randn(N, 6).double()
    expected = references.mean([squares(net, bound(net(x[i : i + 1]), x[i : i + 1]).sum()) for i in range(N)])
    close(fisher(net, [(x, x)], labels="empirical", loss=bound), expected)
    strategy = EWC(fisher="empirical", loss=bound)
    close(strategy.measure(net, [(x, x)], strategy.outputs_of(net), None), expected)


def test_a_loss_that_couples_the_examples_is_refused() -> None:
    def contrastive(z: Tensor, y: Any) -> Tensor:
        return -(z @ z.T).log_softmax(1).diagonal()

    with pytest.raises(ValueError, match="change with the other examples"):
        fisher(nn.Linear(4, 3), [(torch.randn(6, 4), None)], labels="empirical", loss=contrastive)


def test_mas_of_positions_equals_the_loop() -> None:
    for net, x, y in (tokens(), pixels()):
        mask = with_ignored(y) != IGNORED
        values, masked = [], []
        for i in range(N):
            z = net(x[i : i + 1])
            values.append({name: g.abs() for name, g in references.gradients(net, z.square().sum()).items()})
            used = z.squeeze(0).movedim(0 if z.dim() == 4 else -1, -1)[mask[i]]
            if mask[i].any():
                masked.append({name: g.abs() for name, g in references.gradients(net, used.square().sum()).items()})
        close(mas(net, [x]), references.mean(values))
        close(mas(net, [x], outputs=lambda m, b, mask=mask: (m(b), None, mask[: len(b)])), references.mean(masked))


def test_mas_of_outputs_of_constant_norm_says_so() -> None:
    net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"squared norm of the outputs is 1 for every example.*before they are"):
        mas(net, [torch.randn(8, 4)], outputs=lambda m, b: (F.normalize(m(b), dim=1), None))
    nn.init.zeros_(net.weight)  # the norm is constant, but depends on the bias
    assert bool((mas(net, [torch.randn(8, 4)])["bias"] > 0).all())


# --- batches and outputs with names -----------------------------------------------------------------------------------


class Encoding(UserDict[str, Tensor]):
    """A batch with names, as tokenizers return it."""


@dataclass
class Result:
    loss: Tensor | None
    logits: Tensor


class LanguageModel(nn.Module):
    """Returns logits, and a loss if it gets labels, of the tokens themselves or of the next ones."""

    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.tagger, self.shift = Tagger(7), shift

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Result:
        z = self.tagger(input_ids)
        if labels is None:
            return Result(None, z)
        a, b = (z[:, :-1], labels[:, 1:]) if self.shift else (z, labels)
        return Result(F.cross_entropy(a.flatten(0, 1), b.flatten()), z)


@pytest.mark.parametrize("kind", [dict, Encoding])
def test_a_batch_with_names_is_read_if_the_loss_agrees(kind: type) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 7, (N, T))
    y = with_ignored(x)
    batches = [kind({"input_ids": x[:2], "labels": y[:2]}), kind({"input_ids": x[2:], "labels": y[2:]})]
    net = LanguageModel(shift=False).double()
    expected = fisher(net.tagger, [(x, y)], labels="empirical")
    close(fisher(net, batches, labels="empirical"), expected, prefix="tagger.")
    assert mas(LanguageModel(shift=True), batches)
    with pytest.raises(ValueError, match=r"returns a loss of .*causal language models shift their labels.*outputs=fn"):
        fisher(LanguageModel(shift=True), batches, labels="sample")
    with pytest.raises(ValueError, match=r"for loss=mse no targets fit"):
        fisher(LanguageModel(shift=False), batches, loss="mse", labels="sample")


def test_a_mask_of_the_inputs_does_not_belong_to_other_outputs() -> None:
    net, x, _ = tokens()
    batch = {"x": x, "attention_mask": torch.zeros(N, T + 1, dtype=torch.long)}
    close(mas(Masked(net), [batch]), mas(net, [x]))
