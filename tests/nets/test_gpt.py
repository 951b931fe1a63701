"""The transformer decoder gpt_small: no feature sees a later token, and its importance is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.importance import fisher
from clbench.nets import gpt_small
from tests import references

N, T, VOCABULARY = 4, 5, 7
SMALL = {"vocabulary": VOCABULARY, "layers": 2, "width": 8, "heads": 2}


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (N, T), generator=torch.Generator().manual_seed(seed))


def body(**options: float) -> nn.Module:
    torch.manual_seed(0)
    return gpt_small((T,), **{**SMALL, **options}).double()


def test_features_do_not_depend_on_later_tokens():
    net, x = body(), tokens()
    whole = net(x)
    for t in range(T):
        changed = x.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % VOCABULARY
        torch.testing.assert_close(net(changed)[:, : t + 1], whole[:, : t + 1])
        torch.testing.assert_close(net(x[:, : t + 1]), whole[:, : t + 1])
        assert not torch.allclose(net((x + (torch.arange(T) == t)) % VOCABULARY)[:, -1], whole[:, -1])


def test_order_of_earlier_tokens_matters():
    net = body()
    a, b = net(torch.tensor([[1, 2, 3]])), net(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(a[:, -1], b[:, -1])


def test_number_of_parameters():
    width, layers = 128, 2
    per_block = 12 * width**2 + 13 * width
    expected = (256 + 64) * width + layers * per_block + 2 * width
    assert sum(p.numel() for p in gpt_small((64,)).parameters()) == expected


def test_attention_equals_the_formula():
    block = body().blocks[0]
    h = torch.randn(N, T, 8, dtype=torch.float64)
    q, k, v = block.qkv(h).chunk(3, dim=-1)
    expected = torch.zeros_like(h)
    for n in range(N):
        for t in range(T):
            for head in (slice(0, 4), slice(4, 8)):
                weights = (k[n, : t + 1, head] @ q[n, t, head] / 4**0.5).softmax(0)
                expected[n, t, head] = weights @ v[n, : t + 1, head]
    torch.testing.assert_close(block._attention(h), expected)


def test_initial_weights_have_the_deviations_of_gpt_2():
    torch.manual_seed(0)
    net = gpt_small((32,), layers=8, width=64)
    for name, weight in net.named_parameters():
        if name.endswith("bias"):
            assert (weight == 0).all()
        elif "norm" not in name:
            expected = 0.02 / 4 if "project" in name or "contract" in name else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_dropout_acts_in_training_only():
    net, x = body(dropout=0.5), tokens()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("labels", ["empirical", "predicted"])
def test_importance_equals_the_loop_over_examples(labels):
    net = nn.Sequential(body(), nn.Linear(8, VOCABULARY).double())
    x, y = tokens(), tokens(1)
    expected = []
    for i in range(N):
        logits = net(x[i : i + 1])[0]  # (T, C)
        chosen = y[i] if labels == "empirical" else logits.argmax(1)
        found = references.gradients(net, F.cross_entropy(logits, chosen, reduction="sum"))
        expected.append({name: g.square() for name, g in found.items()})
    expected = references.mean(expected)
    result = fisher(net, [(x, y)], labels=labels)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-9, atol=1e-12)


def test_importance_does_not_depend_on_batches():
    net = nn.Sequential(body(), nn.Linear(8, VOCABULARY).double())
    x, y = tokens(), tokens(1)
    whole = fisher(net, [(x, y)], labels="sample")
    parts = fisher(net, [(x[:1], y[:1]), (x[1:], y[1:])], labels="sample")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gpt_small((1, 8, 8)),
            r"net=gpt_small needs tokens: expected inputs \(tokens,\), got shape \(1, 8, 8\)",
        ),
        (lambda: gpt_small((8,), width=10, heads=4), "heads=4: expected a divisor of width=10. Try heads=1"),
        (lambda: gpt_small((8,), width=10, heads=0), "heads=0: expected a divisor of width=10"),
        (lambda: body()(torch.zeros(N, T)), r"expected integer tokens \(N, T\) with T at most 5, got torch.float32"),
        (lambda: body()(torch.zeros(N, 6, dtype=torch.long)), r"with T at most 5, got torch.int64 \(4, 6\)"),
    ],
)
def test_a_wrong_shape_or_option_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
