"""Read the evaluations of a run, of any quality, from the contents of its metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.quality import Quality


class Evaluations(NamedTuple):
    """Evaluations of a run.

    Attributes:
        matrix: R (T, T), nan in the rows of tasks that are not learned yet.
        initial: b (T,), None if it is undefined or missing.
        mid_task: Evaluations during tasks.
    """

    matrix: NDArray[np.float64]
    initial: NDArray[np.float64] | None
    mid_task: list[MidTaskEvaluation]


def evaluated_data(results: Mapping[str, Any]) -> str:
    """Return the data on which R of metrics.json was measured, ``test`` or ``training`` (``eval_on=train``).

    >>> evaluated_data({"data": {"eval_on": "train"}}), evaluated_data({"data": {}})
    ('training', 'test')
    """
    return "training" if (results.get("data") or {}).get("eval_on") == "train" else "test"


def learned_tasks(matrix: NDArray[np.float64]) -> int:
    """Return the number of rows i of R with a value for each of the tasks 0..i. With ``eval_tasks=seen`` the others are nan.

    >>> learned_tasks(np.array([[0.9, np.nan], [0.6, 0.8]])), learned_tasks(np.array([[0.9, 0.1], [np.nan, np.nan]]))
    (2, 1)
    """
    return int(sum(np.isfinite(row[: i + 1]).all() for i, row in enumerate(matrix)))


def read_matrix(results: Mapping[str, Any], quality: Quality) -> NDArray[np.float64]:
    """Return R (T, T) from metrics.json or its entry ``validation``, with nan for null.

    >>> from clbench.metrics.quality import QUALITIES
    >>> read_matrix({"quality_matrix": [[2.5]]}, QUALITIES["bits_per_byte"])
    array([[2.5]])
    """
    return np.array(results[quality.key("accuracy_matrix")], dtype=float)


def read_evaluations(results: Mapping[str, Any], quality: Quality) -> Evaluations:
    """Return the evaluations in metrics.json or its entry ``validation``, of ``quality``.

    Raises:
        KeyError: There is no matrix.
        TypeError, ValueError: The values have another type or shape, because the file was edited.
    """
    initial = np.array(results.get(quality.key("initial_accuracy")) or [None], dtype=float)
    mid_task = [
        MidTaskEvaluation(each["task"], each["step"], each[quality.key("accuracy")])
        for each in results.get("within_tasks") or []
    ]
    return Evaluations(read_matrix(results, quality), initial if np.isfinite(initial).all() else None, mid_task)
