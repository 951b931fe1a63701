"""Laws that importances obey for any data."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clbench.importance import fisher, fisher_and_error, mas, subsample
from clbench.importance.label_options import LabelOptions
from clbench.importance.labels import FisherGradients
from clbench.importance.outputs import Forward
from tests.importance.nets import N, batched, build
from tests.importance.test_exactness import close

seeds = st.integers(0, 2**16)
few = settings(max_examples=max(3, settings.default.max_examples // 6))  # each example measures a net
nets = st.sampled_from(["mlp", "normed", "conv2d", "sequence", "twice"])


@few
@given(nets, seeds, st.integers(1, N), st.integers(1, N) | st.none())
def test_importance_does_not_depend_on_batch_size_or_chunk(name: str, seed: int, size: int, chunk: int | None) -> None:
    net, x, y = build(name, seed)
    close(fisher(net, batched(x, y, size), chunk=chunk), fisher(net, [(x, y)]))
    close(mas(net, batched(x, y, size), chunk=chunk), mas(net, [(x, y)]))


@few
@given(nets, seeds)
def test_importance_does_not_depend_on_order(name: str, seed: int) -> None:
    net, x, y = build(name, seed)
    order = torch.randperm(N)
    close(fisher(net, batched(x[order], y[order], 3), labels="empirical"), fisher(net, [(x, y)], labels="empirical"))
    close(mas(net, [x[order]]), mas(net, [x]))


@few
@given(nets, seeds, st.integers(2, 4))
def test_duplicated_data_changes_nothing(name: str, seed: int, times: int) -> None:
    net, x, y = build(name, seed)
    close(fisher(net, batched(x, y, 4) * times), fisher(net, batched(x, y, 4)))
    close(mas(net, batched(x, y, 4) * times), mas(net, batched(x, y, 4)))


@few
@given(seeds, st.floats(0.1, 10))
def test_rescaling_a_parameter_rescales_its_importance(seed: int, c: float) -> None:
    """Fisher scales with the square of the factor and MAS with its absolute value."""
    torch.manual_seed(seed)
    net, x = nn.Linear(3, 2, bias=False).double(), torch.randn(6, 3, dtype=torch.float64)
    scaled = nn.Linear(3, 2, bias=False).double()
    scaled.weight.data.copy_(net.weight.data / c)  # the same function of c x
    close(fisher(scaled, [c * x]), {"weight": c**2 * fisher(net, [x])["weight"]})
    close(mas(scaled, [c * x]), {"weight": c * mas(net, [x])["weight"]})


@few
@given(seeds, st.integers(1, 20), st.lists(st.integers(1, 7), min_size=4, max_size=8))
def test_the_same_examples_are_drawn_whatever_the_batching(seed: int, samples: int, sizes: list[int]) -> None:
    x = torch.arange(20)
    definitions = [s for s in torch.tensor(sizes).cumsum(0).tolist() if s < 20]
    drawn = torch.cat(list(subsample((b for b in x.tensor_split(definitions)), samples, seed)))
    assert torch.equal(drawn, torch.cat(list(subsample([x], samples, seed))))
    assert len(set(drawn.tolist())) == samples
    assert torch.equal(drawn, drawn.sort().values)


@few
@given(seeds, st.integers(1, N))
def test_sampled_labels_do_not_depend_on_batching(seed: int, size: int) -> None:
    net, x, y = build("mlp")
    options = {"labels": "sample", "label_samples": 3, "seed": seed}
    close(fisher(net, batched(x, y, size), **options), fisher(net, [(x, y)], **options, chunk=2))
    options["fisher_batch"] = 3
    close(fisher(net, batched(x, y, size), **options), fisher(net, [(x, y)], **options, chunk=2))


def test_sampled_labels_depend_on_the_seed() -> None:
    net, x, y = build("mlp")
    first, again, other = (fisher(net, [(x, y)], labels="sample", seed=seed) for seed in (1, 1, 2))
    close(first, again, rtol=0, atol=0)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("labels", "loss", "number"),
    [
        ("exact", "cross_entropy", 3),
        ("exact", "binary_cross_entropy", 1),
        ("exact", "mse", 4),
        ("sample", "cross_entropy", 5),
        ("empirical", "mse", 1),
        ("predicted", "cross_entropy", 1),
    ],
)
def test_the_number_of_columns_is_known_in_advance(labels: str, loss: str, number: int) -> None:
    outputs = 1 if loss == "binary_cross_entropy" else 4
    options = LabelOptions(labels, loss, label_samples=5)
    z = torch.randn(6, outputs)
    y = z if loss == "mse" else torch.zeros(6, dtype=torch.long)
    columns = FisherGradients(options, seed=0)(Forward(z, y))
    found = list(columns.each)
    assert len(found) == columns.number == options.columns(1, outputs) == number
    assert all(column.shape == z.shape for column in found)


def test_every_example_is_drawn_equally_often() -> None:
    hits = torch.zeros(10)
    for seed in range(2000):
        hits[torch.cat(list(subsample([torch.arange(10)], 3, seed)))] += 1
    assert (hits / 2000 - 0.3).abs().max() < 0.045  # 4.4 standard errors


def test_drawing_keeps_no_more_than_the_samples_and_one_batch() -> None:
    copies: list[weakref.ref[Tensor]] = []
    counts = []

    class Counting(Tensor):
        """A tensor that records its slices, copies and views."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = super().__torch_function__(func, types, args, kwargs or {})
            if func is Tensor.clone:
                copies.append(weakref.ref(out))
            return out

    def stream() -> Iterator[Tensor]:
        for _ in range(50):
            yield torch.zeros(10, 3).as_subclass(Counting)
            counts.append(sum(ref() is not None for ref in copies))

    list(subsample(stream(), 5, 0))
    assert len(copies) > 10
    assert max(counts) <= 5


def test_the_true_mean_is_within_the_errors_of_subsamples() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(3, 3).double(), torch.randn(400, 3, dtype=torch.float64)
    truth = fisher(net, [x])["weight"]
    inside = []
    for seed in range(40):
        mean, error = fisher_and_error(net, [x], samples=100, seed=seed)
        inside.append(((mean["weight"] - truth).abs() < 2 * error["weight"]).double().mean())
    assert torch.stack(inside).mean() == pytest.approx(0.95, abs=0.05)


def test_custom_outputs_read_batches_of_any_structure() -> None:
    from typing import NamedTuple

    class Batch(NamedTuple):
        x: Tensor
        y: Tensor
        task: int

    net, x, y = build("mlp")
    expected = fisher(net, [(x, y)], labels="empirical")
    tuples = [Batch(x[:4], y[:4], 2), Batch(x[4:], y[4:], 2)]
    dicts = [{"image": x[:5], "label": y[:5]}, {"image": x[5:], "label": y[5:]}]
    close(fisher(net, tuples, labels="empirical", outputs=lambda m, b: (m(b.x), b.y), chunk=3, samples=N), expected)
    close(fisher(net, dicts, labels="empirical", outputs=lambda m, b: (m(b["image"]), b["label"])), expected)


def test_small_batches_of_one_kind_share_a_forward_pass() -> None:
    net, x, y = build("mlp")
    wide = torch.cat([x] * 40)  # 280 examples
    sizes: list[int] = []

    def outputs(m: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and len(batch[0]) > 4:  # skip the probe of a few examples
            sizes.append(len(batch[0]))
        return m(batch[0]) * batch[1], batch[2]

    batches = [(wide[i : i + 1], 1, y[i % N : i % N + 1]) for i in range(280)]
    expected = fisher(net, [(wide, 1, y.repeat(40))], outputs=outputs)
    assert sizes == [280]
    close(fisher(net, batches, outputs=outputs), expected)
    assert sizes == [280, 64, 64, 64, 64, 24]
    mixed = [(a, 1 + (i >= 100), b) for i, (a, _, b) in enumerate(batches)]  # another structure from example 100
    fisher(net, mixed, outputs=outputs)
    assert sizes[6:] == [64, 36, 64, 64, 52]


def test_a_loader_may_fill_the_same_memory_again() -> None:
    net, x, y = build("mlp")

    def reusing() -> Iterator[tuple[Tensor, Tensor]]:
        one, label = x[:1].clone(), y[:1].clone()
        for i in range(N):
            yield one.copy_(x[i : i + 1]), label.copy_(y[i : i + 1])

    close(fisher(net, reusing(), labels="empirical"), fisher(net, [(x, y)], labels="empirical"))


def test_chunk_1_keeps_single_examples_apart() -> None:
    class Single(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 1
            return super().forward(x)

    torch.manual_seed(0)
    single, net = Single(3, 2).double(), nn.Linear(3, 2).double()
    net.load_state_dict(single.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    close(fisher(single, x.split(1), chunk=1), fisher(net, [x]))


TIMES = {"mlp": 60_000, "conv2d": 2_000, "sequence": 10_000, "attention": 2_000, "branching": 60_000}


@pytest.mark.parametrize("name", TIMES)
def test_a_batch_too_large_for_the_memory_is_measured_in_pieces(name: str) -> None:
    net, x, y = build(name)
    passes: list[None] = []
    net.register_forward_hook(lambda *_: passes.append(None))
    mean, error = fisher_and_error(net, [(x, y)])
    small = len(passes)
    many = TIMES[name]
    many_mean, many_error = fisher_and_error(net, [(x.repeat(many, *[1] * (x.dim() - 1)), y.repeat(many))])
    assert len(passes) > 2 * small
    close(many_mean, mean)
    close(many_error, {key: e * sqrt((N - 1) / (N * many - 1)) for key, e in error.items()}, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_layers_work_unless_they_are_reentrant() -> None:
    """Reentrant activation checkpointing is refused."""
    net, x, y = build("normed")
    expected = fisher(net, [(x, y)])

    def through(reentrant: bool) -> Any:
        def outputs(m: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            h = m[0](batch[0])
            return checkpoint(m[1:], h, use_reentrant=reentrant), batch[1]

        return outputs

    close(fisher(net, [(x, y)], outputs=through(False)), expected)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        fisher(net, [(x, y)], outputs=through(True))
