"""Formulas on the accuracy matrix, for NumPy arrays and tensors.

``matrix`` is R (T, T): R[i, j] is the accuracy on task j after training task i. ``initial`` is b (T,): the accuracy of the
untrained network, or None where it is undefined. Indices count from 0, and accuracies are fractions in [0, 1]. A formula
returns None where it is undefined, for example with a single task.

>>> import numpy as np
>>> R = np.array([[0.9, 0.1], [0.6, 0.8]])
>>> average_accuracy(R), round(forgetting(R), 3), round(backward_transfer(R), 3)
(0.7, 0.3, -0.3)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Array = Any
"""NumPy array or tensor. The formulas use only methods of both, so reports do not import torch."""


class MidTaskEvaluation(NamedTuple):
    """Evaluation during a task.

    Args:
        task: Index of the task in training.
        step: Training step within the task.
        accuracy: Accuracy on each task.
    """

    task: int
    step: int
    accuracy: Sequence[float]


def average_accuracy(matrix: Array) -> float:
    """Return mean_j R[T-1, j], the accuracy over all tasks at the end.

    >>> import numpy as np
    >>> average_accuracy(np.array([[0.9, 0.1], [0.6, 0.8]]))
    0.7
    """
    return float(matrix[-1].mean())


def incremental_accuracy(matrix: Array) -> float:
    """Return mean_i mean_{j<=i} R[i, j], the accuracy on the tasks learned so far, averaged over training (Rebuffi 2017).

    >>> import numpy as np
    >>> incremental_accuracy(np.array([[0.9, 0.1], [0.6, 0.8]]))
    0.8
    """
    return float(sum(matrix[i, : i + 1].mean() for i in range(len(matrix))) / len(matrix))


def learning_accuracy(matrix: Array) -> float:
    """Return mean_i R[i, i], the accuracy on each task right after it was learned.

    >>> import numpy as np
    >>> round(learning_accuracy(np.array([[0.9, 0.1], [0.6, 0.8]])), 3)
    0.85
    """
    return float(matrix.diagonal().mean())


def forgetting(matrix: Array) -> float | None:
    """Return mean_{j<T-1} ( max_{j<=i<=T-2} R[i, j] - R[T-1, j] ) (Chaudhry et al. 2018).

    >>> import numpy as np
    >>> round(forgetting(np.array([[0.9, 0.1], [0.6, 0.8]])), 3)
    0.3
    """
    t = len(matrix)
    if t < 2:
        return None
    return float(sum(matrix[j : t - 1, j].max() - matrix[-1, j] for j in range(t - 1)) / (t - 1))


def backward_transfer(matrix: Array) -> float | None:
    """Return mean_{j<T-1} ( R[T-1, j] - R[j, j] ) (Lopez-Paz and Ranzato 2017).

    >>> import numpy as np
    >>> round(backward_transfer(np.array([[0.9, 0.1], [0.6, 0.8]])), 3)
    -0.3
    """
    return float((matrix[-1] - matrix.diagonal())[:-1].mean()) if len(matrix) > 1 else None


def forward_transfer(matrix: Array, initial: Array | None) -> float | None:
    """Return mean_{j>=1} ( R[j-1, j] - b[j] ) (Lopez-Paz and Ranzato 2017).

    >>> import numpy as np
    >>> round(forward_transfer(np.array([[0.9, 0.1], [0.6, 0.8]]), initial=np.array([0.5, 0.2])), 3)
    -0.1
    """
    if initial is None or len(matrix) < 2:
        return None
    return float((matrix.diagonal(1) - initial[1:]).mean())


def min_accuracy(matrix: Array, mid_task: Sequence[MidTaskEvaluation] = ()) -> float | None:
    """Return the mean over j < T-1 of the lowest accuracy on j at any evaluation after j was learned (De Lange et al. 2023).

    >>> import numpy as np
    >>> min_accuracy(np.array([[0.9, 0.1], [0.6, 0.8]]), [MidTaskEvaluation(task=1, step=10, accuracy=[0.5, 0.4])])
    0.5
    """
    t = len(matrix)
    if t < 2:
        return None
    lowest: list[float] = [
        min([*matrix[j + 1 :, j].tolist(), *(inside.accuracy[j] for inside in mid_task if inside.task > j)])
        for j in range(t - 1)
    ]
    return sum(lowest) / (t - 1)


def worst_case_accuracy(matrix: Array, mid_task: Sequence[MidTaskEvaluation] = ()) -> float:
    """Return R[T-1, T-1] / T + (1 - 1/T) min_accuracy, the WC-ACC of De Lange et al. 2023.

    >>> import numpy as np
    >>> worst_case_accuracy(np.array([[0.9, 0.1], [0.6, 0.8]]))
    0.7
    """
    t, newest = len(matrix), float(matrix[-1, -1])
    lowest = min_accuracy(matrix, mid_task)
    return newest if lowest is None else newest / t + (1 - 1 / t) * lowest


def stability_gap(matrix: Array, mid_task: Sequence[MidTaskEvaluation]) -> float | None:
    """Return the mean over i and j < i of R[i-1, j] - (lowest accuracy on j while task i is learned) (De Lange et al. 2023).

    Tasks without evaluations during training are left out. The result is None if there are no such evaluations.

    >>> import numpy as np
    >>> stability_gap(np.array([[0.9, 0.1], [0.6, 0.8]]), [MidTaskEvaluation(task=1, step=10, accuracy=[0.5, 0.4])])
    0.4
    """
    gaps = []
    for i in range(1, len(matrix)):
        inside = [evaluation.accuracy for evaluation in mid_task if evaluation.task == i]
        gaps += [float(matrix[i - 1, j]) - min(accuracy[j] for accuracy in inside) for j in range(i) if inside]
    return sum(gaps) / len(gaps) if gaps else None


def intransigence(matrix: Array, reference: Array) -> float:
    """Return mean_j ( R*[j, j] - R[j, j] ), where R* is the matrix of the ``reference`` run (Chaudhry et al. 2018).

    >>> import numpy as np
    >>> round(intransigence(np.array([[0.9, 0.1], [0.6, 0.8]]), reference=np.array([[0.9, 0.1], [0.8, 0.9]])), 3)
    0.05
    """
    return float((reference.diagonal() - matrix.diagonal()).mean())
