"""The record of a metric: what it is called, how it is computed or read, which direction is better, how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.metrics.formulas import MidTaskEvaluation

Function = Callable[..., float | None]
Results = Mapping[str, Any]
"""The contents of metrics.json, of this version or an older one."""

INPUTS = ("matrix", "initial", "mid_task")
"""Parameters that the function of a metric may have, see ``formulas``."""


@dataclass(frozen=True)
class Metric:
    """All that is known about a metric.

    Attributes:
        name: key in metrics.json, and column of ``clbench.read`` and summary.csv.
        meaning: what it tells, in a few words.
        formula: on R[i][j] (accuracy on task j after training task i), b (untrained net) and T (tasks), indices from 0.
        source: the paper that defines it.
        function: computes it from any of ``INPUTS``; None if it is computed elsewhere.
        read: takes it from metrics.json; None = the value under ``name``, or ``function`` of the accuracies there.
        higher_is_better: the better direction, None if there is none.
        unit: what it is measured in; metrics of one unit can share an axis.
        format: a format specification, or a function that formats a value.
        heading: heading of its column; by default the name.
        shown: the short tables that contain it: the ``run`` summary, the ``terminal`` table and the ``tex`` table of a report.
        needs_shared_outputs: whether it is undefined if each task has outputs of its own.
    """

    name: str
    meaning: str
    formula: str = ""
    source: str = ""
    function: Function | None = None
    read: Callable[[Results], float | None] | None = None
    higher_is_better: bool | None = None
    unit: str = "accuracy"
    format: str | Callable[[float], str] = "z.3f"  # z: no -0.000
    heading: str = ""
    shown: tuple[str, ...] = ()
    needs_shared_outputs: bool = False

    def __post_init__(self) -> None:
        if not self.heading:
            object.__setattr__(self, "heading", self.name.replace("_", " "))

    @property
    def definition(self) -> str:
        """Meaning, formula and source in one line."""
        text = ": ".join(part for part in (self.meaning, self.formula) if part)
        return f"{text} ({self.source})" if self.source else text

    def text(self, value: float) -> str:
        """Format ``value``."""
        return format(value, self.format) if isinstance(self.format, str) else self.format(value)

    def compute(
        self,
        matrix: NDArray[np.float64],
        initial: NDArray[np.float64] | None,
        mid_task: Sequence[MidTaskEvaluation],
        shares_outputs: bool,
    ) -> float | None:
        """Return ``function`` of the accuracies, None where it is undefined.

        Args:
            matrix: R (T, T) without gaps.
            initial: b (T,), None if undefined.
            mid_task: the evaluations inside tasks.
            shares_outputs: whether all tasks have the same outputs (domain-incremental).
        """
        if self.function is None or (self.needs_shared_outputs and not shares_outputs):
            return None
        matrix = matrix.view()
        matrix.flags.writeable = False  # one metric cannot change what the next one sees
        given = {"matrix": matrix, "initial": initial, "mid_task": mid_task}
        value = self.function(**{name: given[name] for name in signature(self.function).parameters})
        return None if value is None else float(value)

    def read_from(self, results: Results) -> float:
        """Return the value of a run from its metrics.json, nan if there is none.

        A run of an older version may lack the key: then the value is computed if all that ``function`` takes is there.
        """
        if self.read is not None:
            value = self.read(results)
        elif self.name in results:
            value = results[self.name]
        else:
            value = self._recompute(results)
        return np.nan if value is None else float(value)

    def _recompute(self, results: Results) -> float | None:
        """Compute the value from the accuracies in metrics.json."""
        matrix = np.array(results["accuracy_matrix"], dtype=float)
        taken = signature(self.function).parameters if self.function is not None else ()
        scenario = results.get("data", {}).get("scenario")
        if not np.isfinite(matrix).all() or ("mid_task" in taken and "within_tasks" not in results):
            return None
        if ("initial" in taken and "initial_accuracy" not in results) or (
            scenario is None and self.needs_shared_outputs
        ):
            return None
        initial = np.array(results.get("initial_accuracy", [None]), dtype=float)
        mid_task = [MidTaskEvaluation(**evaluation) for evaluation in results.get("within_tasks") or []]
        return self.compute(matrix, initial if np.isfinite(initial).all() else None, mid_task, scenario == "domain")
