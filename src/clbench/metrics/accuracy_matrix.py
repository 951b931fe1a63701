"""The accuracy matrix R[i, j] (accuracy on task j after training task i) and what is read from it.

Formulas as functions of R alone; the class that counts is at the end. All accuracies are fractions in [0, 1].
``None`` stands where a reading is not defined (one task only; an untrained head).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class MidTaskEvaluation(NamedTuple):
    """An evaluation inside a task: while learning ``task``, after ``step`` of its steps; ``accuracy`` on each task."""

    task: int
    step: int
    accuracy: list[float]


def accuracy_matrix(correct: Tensor, examples: Tensor) -> Tensor:
    """R = correct / examples, in float64; nan where nothing was evaluated. Both (T, T), R[i, j] on task j after i."""
    return correct.double() / examples


def average_accuracy(r: Tensor) -> float:
    """mean_j R[T-1, j]: accuracy over all tasks at the end."""
    return r[-1].mean().item()


def learning_accuracy(r: Tensor) -> float:
    """mean_i R[i, i]: accuracy on each task right after it was learned."""
    return r.diagonal().mean().item()


def forgetting(r: Tensor) -> float | None:
    """mean_{j<T-1} ( max_{j<=i<=T-2} R[i, j] - R[T-1, j] ) (Chaudhry et al. 2018); rows from j on."""
    t = len(r)
    if t < 2:
        return None
    return sum((r[j : t - 1, j].max() - r[-1, j]).item() for j in range(t - 1)) / (t - 1)


def backward_transfer(r: Tensor) -> float | None:
    """mean_{j<T-1} ( R[T-1, j] - R[j, j] ) (Lopez-Paz and Ranzato 2017)."""
    return (r[-1] - r.diagonal())[:-1].mean().item() if len(r) > 1 else None


def forward_transfer(r: Tensor, initial: Tensor | None) -> float | None:
    """mean_{j>=1} ( R[j-1, j] - b[j] ) (Lopez-Paz and Ranzato 2017); ``initial`` is b (T,), None where undefined."""
    if initial is None or len(r) < 2:
        return None
    return (r.diagonal(offset=1) - initial[1:]).mean().item()


def min_accuracy(r: Tensor, within: Sequence[MidTaskEvaluation] = ()) -> float | None:
    """mean_{j<T-1} of the lowest accuracy on j at any evaluation after task j was learned (De Lange et al. 2023)."""
    t = len(r)
    if t < 2:
        return None
    lowest = [min([*r[j + 1 :, j].tolist(), *(w.accuracy[j] for w in within if w.task > j)]) for j in range(t - 1)]
    return sum(lowest) / (t - 1)


def worst_case_accuracy(r: Tensor, within: Sequence[MidTaskEvaluation] = ()) -> float:
    """R[T-1, T-1] / T + (1 - 1/T) min_accuracy: WC-ACC of De Lange et al. 2023."""
    t, newest = len(r), r[-1, -1].item()
    lowest = min_accuracy(r, within)
    return newest if lowest is None else newest / t + (1 - 1 / t) * lowest


def stability_gap(r: Tensor, within: Sequence[MidTaskEvaluation]) -> float | None:
    """Mean over i and j < i of R[i-1, j] - min(accuracy on j while task i is learned); None without evaluations inside tasks."""
    gaps = []
    for i in range(1, len(r)):
        inside = [w.accuracy for w in within if w.task == i]
        gaps += [r[i - 1, j].item() - min(a[j] for a in inside) for j in range(i) if inside]
    return sum(gaps) / len(gaps) if gaps else None


def intransigence(r: Tensor, reference: Tensor) -> float:
    """mean_j ( R*[j, j] - R[j, j] ): what was not learned that the reference run R* learned (Chaudhry et al. 2018)."""
    return (reference.diagonal() - r.diagonal()).mean().item()


def summarize(
    r: Tensor, initial: Tensor | None, transfer: bool, within: Sequence[MidTaskEvaluation] = ()
) -> dict[str, float | None]:
    """All of the above, under their names in metrics.json.

    Args:
        r: R (T, T).
        initial: b (T,), accuracy of the untrained net; None where undefined.
        transfer: whether task j's outputs are trained before task j (domain-incremental), so that forward transfer
            is defined.
        within: evaluations inside tasks, if there were any.
    """
    return {
        "average_accuracy": average_accuracy(r),
        "learning_accuracy": learning_accuracy(r),
        "forgetting": forgetting(r),
        "backward_transfer": backward_transfer(r),
        "forward_transfer": forward_transfer(r, initial) if transfer else None,
        "min_accuracy": min_accuracy(r, within),
        "worst_case_accuracy": worst_case_accuracy(r, within),
        "stability_gap": stability_gap(r, within),
    }


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each example in nats (N,); logits (N, C), targets (N,); inf where a target is >= C."""
    known = targets < logits.shape[1]
    log_p = logits.log_softmax(1).gather(1, torch.where(known, targets, 0)[:, None])[:, 0]
    return torch.where(known, -log_p, torch.inf)


def calibration_gaps(logits: Tensor, targets: Tensor, bins: int = 15) -> Tensor:
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
