"""A measurement changes nothing, even if it fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clbench.importance import fisher, fisher_and_error, kronecker_fisher, mas
from tests.importance.nets import build

MEASURES: dict[str, Callable[..., Any]] = {
    "fisher": fisher,
    "sample": lambda net, data: fisher(net, data, labels="sample", label_samples=2, samples=4),
    "grouped": lambda net, data: fisher(net, data, labels="empirical", fisher_batch=2),
    "error": fisher_and_error,
    "kronecker": kronecker_fisher,
    "mas": mas,
}


class Fragile(nn.Module):
    """Changes a buffer at every call, in evaluation mode too, and draws random numbers that it does not use."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("other", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.other = self.other + 1
        torch.rand(1), np.random.rand(), random.random()
        return self.body(x)


def state(net: nn.Module) -> tuple[Any, ...]:
    return (
        [m.training for m in net.modules()],
        [(n, b.clone(), id(b)) for n, b in net.named_buffers()],
        [(n, p.detach().clone(), p.requires_grad, id(p)) for n, p in net.named_parameters(remove_duplicate=False)],
        [(n, None if p.grad is None else p.grad.clone(), id(p.grad)) for n, p in net.named_parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.cudnn.enabled,
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    body, x, y = build(name)
    net = Fragile(body)
    nn.functional.cross_entropy(net(x), y).backward()
    next(net.body.children()).eval()  # different modes
    return net, x, y


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["normed", "conv2d", "heads", "twice", "two names", "repeated"])
def test_importance_does_not_change_the_module(name: str, measure: str) -> None:
    net, x, y = prepared(name)
    before = state(net)
    MEASURES[measure](net, [(x[:4], y[:4]), (x[4:], y[4:])])
    assert same(before, state(net))


@pytest.mark.parametrize("measure", MEASURES)
def test_an_importance_that_fails_does_not_change_the_module(measure: str) -> None:
    net, x, y = prepared("normed")

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield x[:4], y[:4]
        torch.rand(3)
        raise RuntimeError("the disk is gone")

    before = state(net)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        MEASURES[measure](net, broken())
    assert same(before, state(net))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_importance_works_where_gradients_are_off(context: Callable[[], Any]) -> None:
    net, x, y = build("conv2d")
    expected = fisher(net, [(x, y)])
    with context():
        result = fisher(net, [(x.clone(), y.clone())])
    for name, value in result.items():
        assert torch.equal(value, expected[name])
        assert not value.requires_grad and not value.is_inference()


def test_autocast_does_not_lower_the_precision_of_importance() -> None:
    net, x, y = build("mlp")
    net, x = net.float(), x.float()
    expected = fisher(net, [(x, y)])
    with torch.autocast("cpu", torch.bfloat16):
        result = fisher(net, [(x, y)])
    assert all(torch.equal(result[n], expected[n]) for n in expected)


def test_hooks_of_the_user_stay_and_do_not_interfere() -> None:
    net, x, y = build("mlp")
    expected = fisher(net, [(x, y)], labels="empirical", fisher_batch=2)
    seen = []
    first = next(net.children())
    handle = first.register_forward_hook(lambda *_: seen.append(1))
    weight = first.weight.register_hook(lambda g: g * 0)
    result = fisher(net, [(x, y)], labels="empirical", fisher_batch=2)
    assert all(torch.equal(result[n], expected[n]) for n in expected)
    assert seen and handle.id in first._forward_hooks
    handle.remove(), weight.remove()


def test_a_forward_hook_that_changes_the_output_counts() -> None:
    net, x, y = build("mlp")
    first = next(net.children())
    first.register_forward_hook(lambda m, args, out: 2 * out)
    from tests import references

    expected = references.fisher(net, x, y)
    result = fisher(net, [(x, y)])
    for name in expected:
        torch.testing.assert_close(result[name], expected[name])
