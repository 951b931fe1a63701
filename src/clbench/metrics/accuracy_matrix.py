"""Counts of correct answers as the accuracy matrix R[i, j] (accuracy on task j after training task i), and calibration."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15
"""Default number of bins of the calibration error."""


def accuracy_matrix(correct: Tensor, examples: Tensor) -> Tensor:
    """R = correct / examples, in float64; nan where nothing was evaluated. Both (T, T), R[i, j] on task j after i."""
    return correct.double() / examples


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each example in nats (N,); logits (N, C), targets (N,); inf where a target is >= C."""
    known = targets < logits.shape[1]
    log_p = logits.log_softmax(1).gather(1, torch.where(known, targets, 0)[:, None])[:, 0]
    return torch.where(known, -log_p, torch.inf)


def calibration_gaps(logits: Tensor, targets: Tensor, bins: int = BINS) -> Tensor:
    """Sum of confidence minus correctness in each of ``bins`` equal-width bins (bins,); additive over batches.

    The L1 expected calibration error (Guo et al. 2017) is ``gaps.abs().sum() / examples``.
    """
    confidence, predicted = logits.softmax(1).max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are (k/bins, (k+1)/bins]
    gap = confidence.double() - (predicted == targets).double()
    return torch.zeros(bins, dtype=torch.double, device=gap.device).index_add(0, bin_of, gap)


class AccuracyMatrix(Metric):
    """Counts correct answers into R, sample-weighted; works in any loop, sums over processes under DDP.

    >>> matrix = AccuracyMatrix(tasks=2)
    >>> matrix.update(torch.tensor([[0.1, 0.9]]), torch.tensor([1]), after=0, on=1)
    >>> matrix.compute()[0, 1].item()
    1.0

    Args:
        tasks: number of tasks T.
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
            outputs: logits (N, C), or predicted labels (N,).
            targets: labels (N,).
            after: row i of R.
            on: column j of R.
        """
        predicted = outputs.argmax(1) if outputs.ndim == 2 else outputs
        self.correct[after, on] += (predicted == targets).sum()
        self.total[after, on] += targets.numel()

    def compute(self) -> Tensor:
        """R (T, T), see ``accuracy_matrix``."""
        return accuracy_matrix(self.correct, self.total)
