"""The penalty that the monitor and the logs read, and the bound on the step size, in numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clbench.strategies.penalty_state import PenaltyState, empty, sgd_bound
from clbench.strategies.quadratic import Quadratic
from clbench.strategies.step_size import check_step_size

TWO = {"w": torch.tensor([1.0, 3.0]).double()}
ONE = {"w": torch.tensor([0.0, 1.0]).double()}
STATE = PenaltyState(Quadratic(TWO, ONE, torch.tensor(4.0).double()), strength=6.0, lam=2.0)
"""6/2 * (w0^2 + 3 (w1 - 1)^2 + 4). ``lam`` differs from ``strength``, as with gamma in Online EWC."""


def test_value_gradient_and_stiffness_use_the_strength():
    params = {"w": torch.tensor([2.0, 3.0]).double()}
    assert STATE.value(params).item() == 3 * (4 + 3 * 4 + 4)
    assert STATE.gradient(params)["w"].tolist() == [6 * 1 * 2, 6 * 3 * 2]
    assert STATE.stiffness(0.5) == 0.5 * 6 * 3
    assert PenaltyState(empty(), 6.0, 2.0).stiffness(0.5) == 0


@pytest.mark.parametrize(
    ("group", "bound"),
    [
        ({"momentum": 0, "nesterov": False, "dampening": 0}, 2),
        ({"momentum": 0.5, "nesterov": False, "dampening": 0}, 3),
        ({"momentum": 0.5, "nesterov": True, "dampening": 0}, 1.5),
        ({"momentum": 0.5, "nesterov": False, "dampening": 0.5}, 6),
        ({"momentum": 0.5, "nesterov": False, "dampening": 1}, math.inf),
    ],
)
def test_the_bound_of_sgd_is_that_of_its_formula(group, bound):
    assert sgd_bound(group) == bound


def steps(lr, momentum=0.0, optimizer=torch.optim.SGD):
    options = {"momentum": momentum} if optimizer is torch.optim.SGD else {}
    return [text for _, text in check_step_size(STATE, [optimizer([nn.Parameter(torch.zeros(1))], lr=lr, **options)])]


def test_a_step_above_the_bound_is_reported_with_the_largest_lam():
    """With the largest importance 3 and the strength 6, lr=1/6 is at the bound 3 of momentum 0.5, and lr=0.25 above 2."""
    assert steps(1 / 6, momentum=0.5) == steps(1.0, optimizer=torch.optim.Adam) == []
    (text,) = steps(0.25)
    assert text.startswith("SGD with lr=0.25 and lam=2 is unstable: lr*lam*max importance = 4.5")
    assert "stable only below 2. Use lam below 0.89," in text  # 2 * 2 / 4.5
