"""Strategy: a Lightning callback that changes how a sequence of tasks is learned. This one does nothing: fine-tuning."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from clbench.data import Task, TaskSequence
from clbench.errors import Unstable
from clbench.learner import Learner
from clbench.params import trainable


def nothing(strategy: Strategy, options: dict[str, Any]) -> dict[str, Any]:
    """As ``first_task``: the strategy does nothing before the first task has ended."""
    return {}


class Strategy(L.Callback):
    """Fine-tuning: each task is learned from where the last one ended. Every other strategy extends it.

    Attributes:
        seconds: spent on consolidation so far.
        per_process: what it sums up within a task is not the same in all processes, so that no checkpoint there has it.
    """

    seconds = 0.0
    per_process = False

    first_task = nothing
    """``first_task(self, options)``: of the options in its configuration, those that the first task depends on before its
    consolidation, ``_target_`` among them if it depends on the class. Runs of a sweep that agree on these and on all else
    train it once. A class says it for itself only: where it does not, everything matters."""

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        """Begin a run on ``sequence``, with nothing remembered; called before any weight or state is loaded.

        A strategy that needs parameters of its own puts them onto the learner here.
        """
        self.seconds = 0.0

    def check(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if this strategy cannot run on ``sequence``; called before anything is trained."""

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        """What is trained on when task ``index`` comes."""
        return sequence[index]

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int | None:
        """Examples in the smallest pass through the net that has examples of a memory only; None if there is no such pass."""
        return None

    def cost(self) -> dict[str, float]:
        """What the last consolidation used and what is kept, for metrics.json."""
        return {"examples": 0, "bytes": 0}

    def diagnosis(self, trainer: L.Trainer) -> str:
        """Why weights may have become non-finite, and what to do."""
        return "lower the learning rate"

    def matters_first(self, options: dict[str, Any]) -> dict[str, Any]:
        """What ``first_task`` of this very class says, else all ``options``: a subclass may do more in the first task."""
        said = vars(type(self)).get("first_task")
        return options if said is None else said(self, options)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        finite = torch.stack([p.detach().isfinite().all() for p in trainable(pl_module).values()]).all()
        if not finite:
            index = getattr(trainer.datamodule, "index", None)
            where = "training" if index is None else f"training on task {index + 1}"
            raise Unstable(f"{where} gave non-finite weights: {self.diagnosis(trainer)}")
