"""Every mistake of a user is reported in one line, with value, rule and remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from clbench.importance import check_options, fisher, fisher_and_error, mas

X = torch.randn(6, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
NET = nn.Linear(4, 3)
ONE = nn.Linear(4, 1)
INFINITE = nn.Linear(4, 3)
nn.init.constant_(INFINITE.bias, torch.inf)


class Coupled(nn.Linear):
    """Subtracts the mean of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        return z - z.mean(0)


class Noisy(nn.Linear):
    """Applies dropout in evaluation mode too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(x, 0.5))


MISTAKES: list[tuple[str, nn.Module, Any, dict[str, Any]]] = [
    (r"samples=0: expected an integer >= 1", NET, [(X, Y)], {"samples": 0}),
    (r"samples=-3: expected an integer >= 1", NET, [(X, Y)], {"samples": -3}),
    (r"samples=2\.5", NET, [(X, Y)], {"samples": 2.5}),
    (r"samples=7: expected at most 6.*Use samples=6", NET, [(X, Y)], {"samples": 7}),
    (r"have 0 examples", NET, [], {}),
    (r"have 0 examples", NET, [(X[:0], Y[:0])], {"samples": 2}),
    (r"labels=true: expected one of exact", NET, [(X, Y)], {"labels": "true"}),
    (r"loss=hinge: expected one of", NET, [(X, Y)], {"loss": "hinge"}),
    (r"label_samples=0", NET, [(X, Y)], {"labels": "sample", "label_samples": 0}),
    (r"fisher_batch=0", NET, [(X, Y)], {"labels": "sample", "fisher_batch": 0}),
    (r"chunk=0", NET, [(X, Y)], {"chunk": 0}),
    (r"exactly 1/8 .*divide lam by 8", NET, [(X, Y)], {"fisher_batch": 8}),
    (r"labels=predicted with loss=mse", NET, [(X, X)], {"labels": "predicted", "loss": "mse"}),
    (r"target 5: expected 0 to 2", NET, [(X, Y), (X, Y.clamp(min=2) + 3)], {"labels": "empirical"}),
    (r"target -100: expected 0 to 2", NET, [(X, Y.clone().fill_(-100))], {"labels": "empirical"}),
    (r"class indices.*shape \(6, 1\)", NET, [(X, Y[:, None])], {"labels": "empirical"}),
    (r"class indices.*dtype torch.float32", NET, [(X, Y.float())], {"labels": "empirical"}),
    (r"needs targets, but the batches have none", NET, [X], {"labels": "empirical"}),
    (r"one logit.*3 columns", NET, [(X, Y)], {"loss": "binary_cross_entropy"}),
    (r"target 2: expected 0 or 1", ONE, [(X, Y)], {"loss": "binary_cross_entropy", "labels": "empirical"}),
    (
        r"expected shape \(6,\) or \(6, 1\), got \(6, 2\)",
        ONE,
        [(X, X[:, :2])],
        {"loss": "binary_cross_entropy", "labels": "empirical"},
    ),
    (r"over 1 output is always zero", ONE, [(X, Y)], {}),
    (r"expected the shape of the outputs, \(6, 3\)", NET, [(X, X)], {"loss": "mse", "labels": "empirical"}),
    (r"expected shape \(2, C\) for 2 examples, got \(2, 2, 3\)", NET, [(torch.randn(6, 2, 4), Y)], {}),
    (r"expected a tensor.*got tuple.*outputs=fn", NET, [(X, Y)], {"outputs": lambda m, b: ((m(b[0]),), None)}),
    (r"depend on no trainable parameter", NET, [(X, Y)], {"outputs": lambda m, b: (m(b[0]).detach(), None)}),
    (r"no parameter of the module requires grad", nn.Linear(4, 3).requires_grad_(False), [(X, Y)], {}),
    (r"got dict.*outputs=fn", NET, [{"x": X}], {}),
    (r"first dimensions \[3, 6\]", NET, [(X, Y[:3])], {}),
    (r"has no tensor", NET, [("x", "y")], {}),
    (r"track_running_stats=False", nn.Sequential(NET, nn.BatchNorm1d(3, track_running_stats=False)), [(X, Y)], {}),
    (r"change with the other examples", Coupled(4, 3), [(X, Y)], {}),
    (r"random numbers", Noisy(4, 3), [(X, Y)], {}),
    (r"importance of 'weight' is not finite", NET, [(X * float("inf"), Y)], {}),
    (r"importance of 'weight' is not finite", INFINITE, [(X, Y)], {}),
]


@pytest.mark.parametrize(("message", "net", "batches", "options"), MISTAKES, ids=[m[0][:40] for m in MISTAKES])
def test_a_mistake_is_named_with_its_remedy(
    message: str, net: nn.Module, batches: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fisher(net, batches, **options)
    assert "\n" not in str(caught.value)


def test_options_can_be_checked_before_training() -> None:
    check_options(labels="exact", loss="mse", fisher_batch=1, label_samples=1)
    with pytest.raises(ValueError, match="labels=wrong"):
        check_options(labels="wrong", loss="mse", fisher_batch=1, label_samples=1)


def test_errors_of_groups_or_of_one_example_are_refused() -> None:
    with pytest.raises(ValueError, match="fisher_batch=4: expected 1"):
        fisher_and_error(NET, [(X, Y)], labels="empirical", fisher_batch=4)
    with pytest.raises(ValueError, match="at least 2 examples"):
        fisher_and_error(NET, [(X, Y)], samples=1)


def test_mas_needs_no_labels_and_says_when_outputs_are_wrong() -> None:
    assert mas(NET, [X]).keys() == {"weight", "bias"}
    with pytest.raises(ValueError, match="expected shape"):
        mas(NET, [torch.randn(6, 2, 4)])
