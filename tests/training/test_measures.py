"""The quality of each kind of targets is that of an outside library, also batch by batch and with ties or missing labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics.functional.classification as tm
from lightning.pytorch import LightningModule
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clbench.data import Batch
from clbench.data.targets import NO_LABEL
from clbench.learner import Learner
from clbench.training.measures import (
    ByteMeasure,
    LabelsMeasure,
    Measure,
    NumberMeasure,
    PixelMeasure,
    TokenMeasure,
    average_precision,
    measured,
)


class Given(nn.Module):
    """Returns its input as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, task: int) -> Tensor:
        return x * self.weight


def value(kind: type[Measure], z: Tensor, y: Tensor, loss: str = "cross_entropy") -> Any:
    """Return the measure of outputs z for targets y, given in batches of 3 examples."""
    learner = Learner(Given(), torch.optim.SGD, loss=loss)
    batches = [Batch(a, b, 0) for a, b in zip(z.split(3), y.split(3), strict=True)]
    return measured(learner, [batches], kind, z.shape[1])[0]


def test_bits_per_token_are_a_mean_over_all_tokens() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(8, 5, 7), torch.randint(0, 7, (8, 5))
    y[0, :4] = y[7] = NO_LABEL
    expected = cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=NO_LABEL).item() / math.log(2)
    assert value(TokenMeasure, z, y).value() == pytest.approx(expected, rel=1e-6)
    assert value(ByteMeasure, z, y).details() == {"quality": pytest.approx(expected, rel=1e-6)}


def test_the_mse_is_a_mean_over_examples_and_numbers() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(8, 4), torch.randn(8, 4)
    assert value(NumberMeasure, z, y, "mse").value() == pytest.approx((z - y).square().mean().item(), rel=1e-6)


def test_the_mean_iou_is_that_of_torchmetrics() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(8, 3, 4, 5), torch.randint(0, 3, (8, 4, 5))
    y[:, 0] = NO_LABEL
    expected = tm.multiclass_jaccard_index(z, y, 3, ignore_index=NO_LABEL)
    assert value(PixelMeasure, z, y).value() == pytest.approx(expected.item(), rel=1e-6)


def test_a_class_that_is_neither_predicted_nor_true_has_no_iou() -> None:
    z, y = torch.randn(8, 3, 4, 5), torch.randint(0, 2, (8, 4, 5))
    z[:, 2] = -100
    assert value(PixelMeasure, z, y).value() == pytest.approx(value(PixelMeasure, z[:, :2], y).value(), rel=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 5])
def test_the_average_precision_is_that_of_scikit_learn(decimals: int) -> None:
    torch.manual_seed(decimals)
    z, y = torch.randn(50).round(decimals=decimals), torch.randint(0, 2, (50,))
    assert average_precision(z, y) == pytest.approx(average_precision_score(y, z), rel=1e-9)


def test_labels_that_do_not_occur_have_no_precision() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(20, 4), torch.randint(0, 2, (20, 4))
    y[:, 2] = 0
    expected = average_precision_score(y[:, [0, 1, 3]], z[:, [0, 1, 3]], average="macro")
    assert value(LabelsMeasure, z, y, "binary_cross_entropy").value() == pytest.approx(expected, rel=1e-9)


def test_measuring_changes_no_mode() -> None:
    learner: LightningModule = Learner(Given(), torch.optim.SGD).train()
    measured(learner, [[Batch(torch.randn(2, 3), torch.tensor([0, 1]), 0)]])
    assert learner.training


def test_a_batch_without_labels_changes_nothing() -> None:
    z, y = torch.randn(6, 5, 7), torch.randint(0, 7, (6, 5))
    y[3:] = NO_LABEL  # the second batch of three
    assert value(TokenMeasure, z, y).value() == value(TokenMeasure, z[:3], y[:3]).value()
