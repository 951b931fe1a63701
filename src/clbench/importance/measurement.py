"""Measurement: the options that every importance has, handed down as one object."""

from __future__ import annotations

from dataclasses import dataclass

from clbench.importance.general import Outputs
from clbench.importance.outputs import default_outputs


@dataclass(frozen=True)
class Measurement:
    """How an importance is measured. The meaning of each option stands at ``fisher``.

    Args:
        samples: number of examples; None = all.
        fisher_batch: 1 = per example; b = groups of b shuffled examples.
        seed: seed of the draw of examples and of groups.
        outputs: maps module and batch to outputs and targets.
        chunk: most examples per forward pass; None lets the memory decide.
        error: also compute the standard error of each entry.

    Raises:
        ValueError: a value is out of range; standard errors of groups.
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
                raise ValueError(f"{name}={value!r} is not a number of examples; use an integer of at least 1")
        if self.error and self.fisher_batch > 1:
            raise ValueError(
                f"standard errors are over examples, not over groups of fisher_batch={self.fisher_batch}; use 1"
            )
