"""One line with value, rule and remedy for each mistake a user can make."""

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
    """Subtracts the batch mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        return z - z.mean(0)


class Noisy(nn.Linear):
    """Random in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(x, 0.5))


MISTAKES: list[tuple[str, nn.Module, Any, dict[str, Any]]] = [
    (r"samples=0 .*at least 1", NET, [(X, Y)], {"samples": 0}),
    (r"samples=-3 .*at least 1", NET, [(X, Y)], {"samples": -3}),
    (r"samples=2\.5", NET, [(X, Y)], {"samples": 2.5}),
    (r"samples=7 but there are 6 .*samples=6 or fewer", NET, [(X, Y)], {"samples": 7}),
    (r"hold 0 examples", NET, [], {}),
    (r"hold 0 examples", NET, [(X[:0], Y[:0])], {"samples": 2}),
    (r"labels='true' is unknown; choose one of exact", NET, [(X, Y)], {"labels": "true"}),
    (r"loss='hinge' is unknown; choose", NET, [(X, Y)], {"loss": "hinge"}),
    (r"label_samples=0", NET, [(X, Y)], {"labels": "sample", "label_samples": 0}),
    (r"fisher_batch=0", NET, [(X, Y)], {"labels": "sample", "fisher_batch": 0}),
    (r"chunk=0", NET, [(X, Y)], {"chunk": 0}),
    (r"exactly 1/8 .*lam/8", NET, [(X, Y)], {"fisher_batch": 8}),
    (r"predicted.*no meaning with loss='mse'", NET, [(X, X)], {"labels": "predicted", "loss": "mse"}),
    (r"target 5 is outside 0\.\.2", NET, [(X, Y), (X, Y.clamp(min=2) + 3)], {"labels": "empirical"}),
    (r"target -100 is outside 0\.\.2", NET, [(X, Y.clone().fill_(-100))], {"labels": "empirical"}),
    (r"shape \(6, 1\).*class numbers", NET, [(X, Y[:, None])], {"labels": "empirical"}),
    (r"dtype torch.float32.*class numbers", NET, [(X, Y.float())], {"labels": "empirical"}),
    (r"needs targets and the batches have none", NET, [X], {"labels": "empirical"}),
    (r"one logit.*3 columns", NET, [(X, Y)], {"loss": "binary_cross_entropy"}),
    (r"target 2 is neither 0 nor 1", ONE, [(X, Y)], {"loss": "binary_cross_entropy", "labels": "empirical"}),
    (r"shape \(6, 2\)", ONE, [(X, X[:, :2])], {"loss": "binary_cross_entropy", "labels": "empirical"}),
    (r"over 1 output is always zero", ONE, [(X, Y)], {}),
    (r"mse takes that of the outputs, \(6, 3\)", NET, [(X, X)], {"loss": "mse", "labels": "empirical"}),
    (r"outputs have shape \(2, 2, 3\)", NET, [(torch.randn(6, 2, 4), Y)], {}),
    (r"returned a tuple.*outputs=fn", NET, [(X, Y)], {"outputs": lambda m, b: ((m(b[0]),), None)}),
    (r"depend on no trainable parameter", NET, [(X, Y)], {"outputs": lambda m, b: (m(b[0]).detach(), None)}),
    (r"no parameter of the module requires grad", nn.Linear(4, 3).requires_grad_(False), [(X, Y)], {}),
    (r"batch of type dict.*outputs=fn", NET, [{"x": X}], {}),
    (r"first dimensions \[3, 6\]", NET, [(X, Y[:3])], {}),
    (r"holds no tensor", NET, [("x", "y")], {}),
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
    with pytest.raises(ValueError, match="labels='wrong'"):
        check_options(labels="wrong", loss="mse", fisher_batch=1, label_samples=1)


def test_errors_of_groups_or_of_one_example_are_refused() -> None:
    with pytest.raises(ValueError, match="not over groups of fisher_batch=4"):
        fisher_and_error(NET, [(X, Y)], labels="empirical", fisher_batch=4)
    with pytest.raises(ValueError, match="at least 2 examples"):
        fisher_and_error(NET, [(X, Y)], samples=1)


def test_mas_needs_no_labels_and_says_when_outputs_are_wrong() -> None:
    assert mas(NET, [X]).keys() == {"weight", "bias"}
    with pytest.raises(ValueError, match="outputs have shape"):
        mas(NET, [torch.randn(6, 2, 4)])
