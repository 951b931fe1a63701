"""The accuracy matrix R[i, j], the accuracy on task j after training task i, and calibration."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


def accuracy_matrix(correct: Tensor, examples: Tensor) -> Tensor:
    """Return R = correct / examples (T, T) in float64, with nan where nothing was evaluated.

    Args:
        correct: Number of correct predictions on task j after training task i (T, T).
        examples: Number of examples (T, T).

    >>> accuracy_matrix(torch.tensor([[9, 2], [8, 7]]), torch.tensor([[10, 10], [10, 10]])).tolist()
    [[0.9, 0.2], [0.8, 0.7]]
    """
    return correct.double() / examples


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each example (N,) in nats, inf for a target >= C.

    Args:
        logits: Logits (N, C).
        targets: Labels (N,).

    >>> nll(torch.zeros(1, 4), torch.tensor([2])).item() == torch.tensor(4.0).log().item()
    True
    """
    known = targets < logits.shape[1]
    log_p = logits.log_softmax(1).gather(1, torch.where(known, targets, 0)[:, None])[:, 0]
    return torch.where(known, -log_p, torch.inf)


def calibration_gaps(logits: Tensor, targets: Tensor, bins: int = 15) -> Tensor:
    """Return the sum of confidence minus correctness in each of ``bins`` equal-width bins (bins,).

    The sums of batches can be added. The L1 expected calibration error (Guo et al. 2017) is ``gaps.abs().sum() / examples``.

    Args:
        logits: Logits (N, C).
        targets: Labels (N,).
        bins: Number of bins (k/bins, (k+1)/bins].

    >>> calibration_gaps(torch.zeros(3, 2), torch.tensor([0, 0, 1]), bins=2).tolist()  # confidence 1/2, two of three correct
    [-0.5, 0.0]
    """
    confidence, predicted = logits.softmax(1).max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are (k/bins, (k+1)/bins]
    gap = confidence.double() - (predicted == targets).double()
    return torch.zeros(bins, dtype=torch.double, device=gap.device).index_add(0, bin_of, gap)


class AccuracyMatrix(Metric):
    """Accuracy matrix R, counted from predictions in any training loop and summed over processes under DDP.

    R[i, j] = correct predictions / examples of task j after training task i. Indices count from 0.

    >>> matrix = AccuracyMatrix(tasks=2)
    >>> matrix.update(torch.tensor([[0.1, 0.9]]), torch.tensor([1]), after=0, on=1)
    >>> matrix.compute()[0, 1].item()
    1.0

    Args:
        tasks: Number of tasks T.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros(tasks, tasks, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(tasks, tasks, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor, after: int, on: int) -> None:
        """Count one batch of task ``on``, evaluated after training task ``after``.

        Args:
            outputs: Logits (N, C) or predicted labels (N,).
            targets: Labels (N,).
            after: Row i of R.
            on: Column j of R.
        """
        predicted = outputs.argmax(1) if outputs.ndim == 2 else outputs
        self.correct[after, on] += (predicted == targets).sum()
        self.total[after, on] += targets.numel()

    def compute(self) -> Tensor:
        """Return R (T, T) in float64, with nan where nothing was evaluated."""
        return accuracy_matrix(self.correct, self.total)
