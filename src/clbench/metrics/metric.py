"""The record of a metric: its name, formula, better direction and format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.errors import ConfigError
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.quality import ACCURACY, Quality, quality_of
from clbench.metrics.results import learned_tasks, read_evaluations

Function = Callable[..., float | None]
Results = Mapping[str, Any]
"""Content of a metrics.json of this version or an older one."""

INPUTS = ("matrix", "initial", "mid_task")
"""Parameters that the function of a metric may take, see ``formulas``."""


@dataclass(frozen=True)
class Metric:
    """Record of a metric.

    Attributes:
        name: Identifier, and for runs of accuracy the key in metrics.json and column of ``clbench.read`` and summary.csv. See
            ``key`` for other qualities.
        meaning: Meaning in a few words.
        formula: Formula on R[i][j] (accuracy on task j after training task i), b (untrained network) and T (number of tasks),
            with indices from 0.
        source: Paper that defines the metric.
        function: Function of any of ``INPUTS`` that computes the metric, None if it is computed elsewhere.
        read: Function that reads the metric from metrics.json. None reads the value under ``key``, or computes ``function``
            from the accuracies there.
        higher_is_better: Better direction, None if there is none. See ``of`` for qualities other than accuracy.
        unit: Unit. Metrics with the same unit can share an axis.
        format: Format specification, or a function that formats a value.
        heading: Heading of the column, by default the name.
        shown: Short tables that contain the metric: the ``run`` summary, the ``terminal`` and ``tex`` tables of a report.
        needs_shared_outputs: Whether the metric is undefined if each task has separate outputs.
        is_quality: Whether the value is on the scale of R. Otherwise it is a difference, or a number of another kind.

    >>> metric = Metric("worst_task", "lowest accuracy at the end", function=lambda matrix: matrix[-1].min())
    >>> metric.compute(np.array([[0.9, 0.1], [0.6, 0.8]]), initial=None, mid_task=[], shares_outputs=False)
    0.6
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
    is_quality: bool = False

    def __post_init__(self) -> None:
        if not self.heading:
            object.__setattr__(self, "heading", self.name.replace("_", " "))

    @property
    def definition(self) -> str:
        """Meaning, formula and source in one line."""
        text = ": ".join(part for part in (self.meaning, self.formula) if part)
        return f"{text} ({self.source})" if self.source else text

    def key(self, quality: Quality) -> str:
        """Return the key in metrics.json of a run of ``quality``."""
        return quality.key(self.name) if self.is_quality else self.name

    def of(self, quality: Quality) -> Metric:
        """Return the record for runs of ``quality``: the same name, and texts, unit and better direction of the quality.

        >>> metric = Metric("average_accuracy", "mean over tasks", higher_is_better=True, is_quality=True)
        >>> from clbench.metrics.quality import QUALITIES
        >>> metric.of(QUALITIES["bits_per_byte"]).heading, metric.of(QUALITIES["bits_per_byte"]).higher_is_better
        ('average bits per byte', False)
        """
        if quality == ACCURACY:
            return self
        texts = {
            name: getattr(self, name).replace("accuracy", quality.label) for name in ("meaning", "heading", "unit")
        }
        texts["formula"] = quality.key(self.formula)
        if not quality.higher_is_better:
            texts["heading"] = texts["heading"].replace("min ", "max ")
            if self.formula:
                texts["formula"] += ", computed on -R and -b" + (" and negated" if self.is_quality else "")
        better = quality.higher_is_better if self.is_quality else self.higher_is_better
        return replace(self, higher_is_better=better, **texts)

    def text(self, value: float) -> str:
        """Format ``value``."""
        return format(value, self.format) if isinstance(self.format, str) else self.format(value)

    def compute(
        self,
        matrix: NDArray[np.float64],
        initial: NDArray[np.float64] | None,
        mid_task: Sequence[MidTaskEvaluation],
        shares_outputs: bool,
        quality: Quality = ACCURACY,
    ) -> float | None:
        """Return ``function`` of the accuracies or other qualities, None where it is undefined.

        Where lower values are better, ``function`` gets all values with the opposite sign, so that higher is better. A value on
        the scale of R is turned back.

        Args:
            matrix: R (T, T) without gaps.
            initial: b (T,), None if undefined.
            mid_task: Evaluations during tasks.
            shares_outputs: Whether all tasks have the same outputs (domain-incremental).
            quality: Quality of the values.
        """
        if self.function is None or (self.needs_shared_outputs and not shares_outputs):
            return None
        matrix = quality.sign * matrix
        matrix.flags.writeable = False  # the function of a user must not change its input
        given = {
            "matrix": matrix,
            "initial": None if initial is None else quality.sign * initial,
            "mid_task": mid_task if quality.higher_is_better else [_negated(each) for each in mid_task],
        }
        value = self.function(**{name: given[name] for name in _parameters(self.function)})
        if value is None:
            return None
        return float(quality.sign * value if self.is_quality else value)

    def compute_or_explain(self, *inputs: Any) -> float | None:
        """Return ``compute(*inputs)``.

        Raises:
            ConfigError: The function, which may be the user's, fails.
        """
        try:
            return self.compute(*inputs)
        except Exception as error:
            raise ConfigError(
                f"metric {self.name} fails on the accuracies of this run: {type(error).__name__}: {error}. Correct it or "
                "leave it out, and rerun the same command."
            ) from error

    def read_from(self, results: Results) -> float:
        """Return the value of a run from its metrics.json, nan if there is none.

        A run of an older version may lack the key. Then the value is computed if all inputs of ``function`` are available.

        Raises:
            ConfigError: ``function`` fails.
        """
        if self.read is not None:
            value = self.read(results)
        elif (key := self.key(quality_of(results))) in results:
            value = results[key]
        else:
            value = self._recompute(results)
        return np.nan if value is None else float(value)

    def _recompute(self, results: Results) -> float | None:
        """Compute the value from the accuracies in metrics.json."""
        quality = quality_of(results)
        taken = _parameters(self.function) if self.function is not None else ()
        scenario = (results.get("data") or {}).get("scenario")
        matrix, initial, mid_task = read_evaluations(results, quality)
        if learned_tasks(matrix) < len(matrix) or ("mid_task" in taken and "within_tasks" not in results):
            return None
        if ("initial" in taken and quality.key("initial_accuracy") not in results) or (
            scenario is None and self.needs_shared_outputs
        ):
            return None
        return self.compute_or_explain(matrix, initial, mid_task, scenario == "domain", quality)


def _negated(evaluation: MidTaskEvaluation) -> MidTaskEvaluation:
    return evaluation._replace(accuracy=[-value for value in evaluation.accuracy])


@cache
def _parameters(function: Function) -> tuple[str, ...]:
    """Return the names of the parameters, found once, because a report computes the metrics of thousands of runs."""
    return tuple(signature(function).parameters)
