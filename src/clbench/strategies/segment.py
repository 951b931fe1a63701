"""Segment: the part of a stream since the last consolidation, and when the next one is due."""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning as L
from torch import Tensor, nn

from clbench.data import Batch
from clbench.errors import StrategyError, expected
from clbench.importance.batching import move_to, tree_map
from clbench.learner import Learner
from clbench.strategies.plateau import Plateau

Every = int | str | Plateau | None
"""A number of steps, ``plateau``, a ``Plateau`` with other thresholds, or None."""


class Segment:
    """The batches of a stream since the last consolidation, as they were trained on (with their augmentation).

    A segment ends after ``every`` optimiser steps, or when the loss reaches a plateau. For a plateau only the last batches are
    kept, as many as the detector has losses, so the memory is bounded in both cases. A segment may begin in one fit and end in a
    later one.

    Args:
        every: Number of optimiser steps >= 1, ``plateau`` for ``Plateau()``, or a ``Plateau``.

    Raises:
        ConfigError: ``every`` is another value.

    Example:
        >>> Segment("plateau").batches.maxlen
        5
    """

    def __init__(self, every: Every) -> None:
        is_number = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        if not (is_number or every == "plateau" or isinstance(every, Plateau)):
            raise StrategyError(expected("every", every, "an integer >= 1, plateau, or None"))
        self.every = Plateau() if isinstance(every, str) else every
        self.batches: deque[Any] = deque(maxlen=self.every.window if isinstance(self.every, Plateau) else None)
        self.steps = 0
        self._global_step = 0

    def __str__(self) -> str:
        return f"every={self.every}"

    def reset(self) -> None:
        """Forget all batches and losses."""
        self.batches.clear()
        self.steps = 0
        if isinstance(self.every, Plateau):
            self.every.reset()

    def begin(self, trainer: L.Trainer, module: nn.Module) -> None:
        """Prepare for a fit. Batches of a checkpoint are moved to the device of the module, and are those of its kind again."""
        self._global_step = trainer.global_step
        device = next(module.parameters()).device
        kept = [Batch(*batch) if isinstance(module, Learner) else batch for batch in self.batches]
        self.batches = deque((move_to(batch, device) for batch in kept), maxlen=self.batches.maxlen)

    def add(self, trainer: L.Trainer, batch: Any, outputs: Any) -> bool:
        """Add a batch that was trained on, with the outputs of its training step. Return whether the segment ends with it."""
        self.batches.append(tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch))
        has_stepped, self._global_step = trainer.global_step != self._global_step, trainer.global_step
        self.steps += has_stepped
        if isinstance(self.every, Plateau):
            return self.every.update(loss_of(outputs) * trainer.accumulate_grad_batches)  # Lightning divides it
        return has_stepped and self.steps == self.every

    def end(self) -> list[Any]:
        """Return the batches, and begin the next segment."""
        batches = list(self.batches)
        self.batches.clear()
        self.steps = 0
        return batches

    def state_dict(self) -> dict[str, Any]:
        batches = [tuple(batch) if isinstance(batch, Batch) else batch for batch in self.batches]
        losses = {"plateau": self.every.state_dict()} if isinstance(self.every, Plateau) else {}
        return {"batches": batches, "steps": self.steps, **losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = deque(state["batches"], maxlen=self.batches.maxlen)
        self.steps = state["steps"]
        if isinstance(self.every, Plateau):
            self.every.load_state_dict(state["plateau"])


def loss_of(outputs: Any) -> float:
    """Return the loss in the outputs of a training step. It does not include a quadratic penalty, which only has gradients.

    Raises:
        ConfigError: There is none.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        raise StrategyError(
            f"every=plateau: expected training_step to return the loss, got {type(outputs).__name__}. Return it, or use every=K"
        )
    return loss.item()
