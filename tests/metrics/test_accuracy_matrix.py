import math

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

from clbench.metrics.accuracy_matrix import AccuracyMatrix, accuracy_matrix, calibration_gaps, nll


def test_the_accuracy_of_tasks_not_evaluated_is_nan():
    r = accuracy_matrix(torch.tensor([[3, 0], [1, 2]]), torch.tensor([[4, 0], [4, 2]]))
    assert r.dtype == torch.double
    assert math.isnan(r[0, 1])
    assert r[[0, 1, 1], [0, 0, 1]].tolist() == [0.75, 0.25, 1.0]


@pytest.mark.parametrize("form", ["logits", "labels"])
def test_accuracy_is_weighted_by_examples_over_unequal_batches(form):
    counted = AccuracyMatrix(tasks=2)
    for predicted, targets in (([1, 0, 2, 2], [1, 0, 2, 0]), ([1], [0])):
        outputs = torch.tensor(predicted)
        if form == "logits":
            outputs = nn.functional.one_hot(outputs, 3).float()
        counted.update(outputs, torch.tensor(targets), after=1, on=0)
    counted.update(torch.tensor([1, 1]), torch.tensor([1, 1]), after=0, on=1)
    r = counted.compute()
    assert r[1, 0].item() == 3 / 5  # not the mean of 3/4 and 0
    assert r[0, 1].item() == 1
    assert r[0, 0].isnan() and r[1, 1].isnan()


def test_a_reset_matrix_has_no_counts():
    counted = AccuracyMatrix(tasks=1)
    counted.update(torch.tensor([1]), torch.tensor([1]), after=0, on=0)
    counted.reset()
    counted.update(torch.tensor([1]), torch.tensor([0]), after=0, on=0)
    assert counted.compute().item() == 0


def outputs_and_targets(examples=500, classes=10, scale=3.0):
    draw = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(examples, classes, generator=draw, dtype=torch.double)
    return logits, torch.randint(classes, (examples,), generator=draw)


def test_nll_is_the_cross_entropy_of_each_example():
    logits, targets = outputs_and_targets()
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(nll(logits, targets), expected, rtol=1e-12, atol=1e-12)


def test_nll_is_infinite_for_targets_that_cannot_be_predicted():
    """The target is not among the outputs, or its logit is minus infinity."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, -torch.inf]])
    assert nll(logits, torch.tensor([1, 2, 1])).tolist() == [pytest.approx(math.log(2)), torch.inf, torch.inf]


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_calibration_error_is_that_of_torchmetrics(scale):
    logits, targets = outputs_and_targets(scale=scale)
    reference = MulticlassCalibrationError(num_classes=10, n_bins=15, norm="l1")(logits, targets).item()
    found = calibration_gaps(logits, targets).abs().sum().item() / len(targets)
    assert found == pytest.approx(reference, abs=1e-6)  # torchmetrics counts in float32
    assert found > 0.01


def test_the_calibration_error_has_15_bins_by_default():
    """Confidences of 0.61 and 0.69, one correct and one wrong, share one of 10 bins, where they would partly cancel."""
    p = torch.tensor([0.61, 0.69], dtype=torch.double)
    gaps = calibration_gaps(torch.stack([p, 1 - p], 1).log(), torch.tensor([0, 1]))
    assert len(gaps) == 15
    assert gaps[[9, 10]].tolist() == pytest.approx([0.61 - 1, 0.69])


def test_a_confidence_at_the_border_of_two_bins_is_in_the_lower():
    assert calibration_gaps(torch.zeros(1, 2), torch.tensor([1]), bins=2).tolist() == [0.5, 0.0]
    assert calibration_gaps(torch.zeros(1, 4), torch.tensor([1]), bins=4).tolist() == [0.25, 0.0, 0.0, 0.0]


def test_calibration_gaps_add_up_over_unequal_batches():
    logits, targets = outputs_and_targets()
    whole = calibration_gaps(logits, targets)
    parts = sum(calibration_gaps(z, y) for z, y in zip(logits.split(170), targets.split(170), strict=True))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", range(8, 15))
def test_a_confidence_falls_in_the_bin_that_contains_it(k):
    p = (k + 0.5) / 15
    gaps = calibration_gaps(torch.tensor([[p, 1 - p]], dtype=torch.double).log(), torch.tensor([1]), bins=15)
    assert gaps.nonzero().flatten().tolist() == [k]
    assert gaps[k].item() == pytest.approx(p)


def test_certain_predictions_fall_in_the_last_bin():
    logits = torch.tensor([[0.0, 1e4], [0.0, 1e4], [1e4, 0.0]])
    gaps = calibration_gaps(logits, torch.tensor([0, 1, 0]), bins=15)
    assert gaps.tolist() == [0.0] * 14 + [1.0]
