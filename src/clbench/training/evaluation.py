"""Evaluation: a callback that fills the accuracy matrices when a task has been learned (and b before the first)."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor

from clbench.data import Batch, Task
from clbench.errors import ConfigError
from clbench.importance.preserve_state import preserve_state
from clbench.learner import Learner, learner_outputs
from clbench.metrics.accuracy_matrix import MidTaskEvaluation, accuracy_matrix, calibration_gaps, nll, summarize

CORRECT, EXAMPLES, NLL, GAPS = 0, 1, 2, 3


def tally(module: Learner, loaders: Iterable[Iterable[Batch]]) -> Tensor:
    """Counts of each loader, in float64 on the CPU: correct, examples, sum of nll, then the calibration gaps.

    In eval mode and the precision of the weights, whatever the training precision; the module is left as it was.
    """
    rows = []
    with preserve_state(module), torch.no_grad():
        for loader in loaders:
            row = torch.zeros(3 + 15, dtype=torch.double)
            for batch in loader:
                logits, y = learner_outputs(module, batch)
                logits = module.logits(logits.float())
                counts = torch.stack([(logits.argmax(1) == y).sum().double(), nll(logits, y).double().sum()]).cpu()
                row[CORRECT] += counts[0]
                row[EXAMPLES] += len(y)
                row[NLL] += counts[1]
                row[GAPS:] += calibration_gaps(logits, y).cpu()
            rows.append(row)
    return torch.stack(rows)


class Evaluation(L.Callback):
    """Accuracy on the test (and validation) data of every task, after each task.

    Comes after the strategy in the list of callbacks, so that it sees the net that the next task starts from.

    Args:
        tasks: number of tasks T.
        every: evaluate on the test data every so many steps inside a task too; None = after each task only.

    Attributes:
        counts: of ``test`` and ``validation`` data, (2, T, T): correct answers and examples.
        initial: b (T,), None where the scenario leaves it undefined.
        within: the evaluations inside tasks.
        per_task: final accuracy, nll and ece of each task, once the last has been learned.
    """

    def __init__(self, tasks: int, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ConfigError(f"eval_every={every}: at least 1 step between evaluations, or null for none inside tasks")
        self.every = every
        self.within: list[MidTaskEvaluation] = []
        self.counts = {which: torch.zeros(2, tasks, tasks, dtype=torch.long) for which in ("test", "validation")}
        self.initial: Tensor | None = None
        self.per_task: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Learner) -> None:
        task: Task = trainer.datamodule
        began = trainer.ckpt_path is None
        if (
            began and task.index == 0 and task.sequence.scenario.name != "class"
        ):  # no class has been seen: b is undefined
            counts = self._tally(trainer, pl_module, task.test_dataloader())
            self.initial = counts[:, CORRECT] / counts[:, EXAMPLES]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Learner, *_: Any) -> None:
        step, task = trainer.global_step, trainer.datamodule
        if (
            self.every is None
            or step == 0
            or step % self.every
            or (self.within and self.within[-1][:2] == (task.index, step))
        ):
            return
        counts = self._tally(trainer, pl_module, task.test_dataloader())
        self.within.append(MidTaskEvaluation(task.index, step, (counts[:, CORRECT] / counts[:, EXAMPLES]).tolist()))

    def on_train_end(self, trainer: L.Trainer, pl_module: Learner) -> None:
        task: Task = trainer.datamodule
        counts = self._tally(trainer, pl_module, task.test_dataloader())
        self.counts["test"][:, task.index] = counts.T[:2].long()
        if task.sequence.has_validation:
            validation = self._tally(trainer, pl_module, task.val_dataloader())
            self.counts["validation"][:, task.index] = validation.T[:2].long()
        if task.index == len(task.sequence) - 1:
            self.per_task = [
                {
                    "accuracy": (row[CORRECT] / row[EXAMPLES]).item(),
                    "nll": (row[NLL] / row[EXAMPLES]).item(),
                    "ece": (row[GAPS:].abs().sum() / row[EXAMPLES]).item(),
                }
                for row in counts
            ]

    def summarize(self, which: str, transfer: bool) -> dict[str, Any]:
        """R of ``test`` or ``validation`` and everything read from it, under the names of metrics.json."""
        r = accuracy_matrix(*self.counts[which])
        initial, within = (self.initial, self.within) if which == "test" else (None, [])
        return {"accuracy_matrix": r.tolist(), **summarize(r, initial, transfer, within)}

    def state_dict(self) -> dict[str, Any]:
        within = [list(w) for w in self.within]
        return {"counts": self.counts, "initial": self.initial, "per_task": self.per_task, "within": within}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts = state_dict["counts"]
        self.initial = state_dict["initial"]
        self.per_task = state_dict["per_task"]
        self.within = [MidTaskEvaluation(*w) for w in state_dict["within"]]

    def _tally(self, trainer: L.Trainer, learner: Learner, loaders: Iterable[Iterable[Batch]]) -> Tensor:
        """Counts over all processes."""
        start = perf_counter()
        counts = tally(learner, loaders)
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts.to(learner.device), reduce_op="sum").cpu()
        self.seconds += perf_counter() - start
        return counts
