"""Measurement: the options shared by all importances, in one object."""

from __future__ import annotations

from dataclasses import dataclass

from clbench.errors import expected
from clbench.importance.outputs import Outputs, default_outputs


@dataclass(frozen=True)
class Measurement:
    """Options of a measurement, explained at ``fisher``.

    Args:
        samples: Number of examples, None for all.
        fisher_batch: Group size, 1 for per-example values.
        seed: Random seed of the examples and of the groups.
        outputs: Function that maps module and batch to outputs and targets.
        chunk: Largest number of examples per forward pass. None lets the memory decide.
        error: Whether to compute the standard error of each entry.

    Raises:
        ValueError: A value is out of range, or ``error`` is combined with groups.
    """

    samples: int | None = None
    fisher_batch: int = 1
    seed: int = 0
    outputs: Outputs = default_outputs
    chunk: int | None = None
    error: bool = False

    def __post_init__(self) -> None:
        for name, value in (("fisher_batch", self.fisher_batch), ("chunk", self.chunk)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(expected(name, value, "an integer >= 1"))
        if self.error and self.fisher_batch > 1:
            raise ValueError(f"fisher_batch={self.fisher_batch}: expected 1, because standard errors are over examples")
