"""Evaluation: a callback that fills the accuracy matrices when a task has been learned (and b before the first)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor

from clbench.data import Batch, Task, task_of
from clbench.errors import ConfigError
from clbench.importance.preserve_state import preserve_state
from clbench.learner import Learner, learner_of, learner_outputs
from clbench.metrics.accuracy_matrix import accuracy_matrix, calibration_gaps, nll
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.metric import Metric
from clbench.metrics.registry import load_metrics, summarize

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
        metrics: what is computed from the accuracies; None = all metrics of this process.
        shares_outputs: whether all tasks have the same outputs, so that forward transfer is defined.

    Attributes:
        metrics: the metrics by name.
        counts: of ``test`` and ``validation`` data, (2, T, T): correct answers and examples.
        initial: b (T,), None where the scenario leaves it undefined.
        within: the evaluations inside tasks.
        per_task: final accuracy, nll and ece of each task, once the last has been learned.
    """

    def __init__(
        self,
        tasks: int,
        every: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
        shares_outputs: bool = False,
    ) -> None:
        if every is not None and every < 1:
            raise ConfigError(f"eval_every={every}: at least 1 step between evaluations, or null for none inside tasks")
        self.every = every
        self.metrics = load_metrics() if metrics is None else metrics
        self.shares_outputs = shares_outputs
        self.within: list[MidTaskEvaluation] = []
        self.counts = {which: torch.zeros(2, tasks, tasks, dtype=torch.long) for which in ("test", "validation")}
        self.initial: Tensor | None = None
        self.per_task: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task: Task = task_of(trainer)
        began = trainer.ckpt_path is None
        if (
            began and task.index == 0 and task.sequence.scenario.name != "class"
        ):  # no class has been seen: b is undefined
            counts = self._tally(trainer, learner, task.test_dataloader())
            self.initial = counts[:, CORRECT] / counts[:, EXAMPLES]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        learner = learner_of(pl_module)
        step, task = trainer.global_step, task_of(trainer)
        if (
            self.every is None
            or step == 0
            or step % self.every
            or (self.within and self.within[-1][:2] == (task.index, step))
        ):
            return
        counts = self._tally(trainer, learner, task.test_dataloader())
        self.within.append(MidTaskEvaluation(task.index, step, (counts[:, CORRECT] / counts[:, EXAMPLES]).tolist()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task: Task = task_of(trainer)
        counts = self._tally(trainer, learner, task.test_dataloader())
        self.counts["test"][:, task.index] = counts.T[:2].long()
        if task.sequence.has_validation:
            validation = self._tally(trainer, learner, task.val_dataloader())
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

    def matrix(self, which: str) -> Tensor:
        """Return R of ``test`` or ``validation`` data, nan in the rows of tasks to come."""
        return accuracy_matrix(*self.counts[which])

    def summarize(self, which: str, tasks: int | None = None) -> dict[str, float | None]:
        """Return the metrics of ``test`` or ``validation`` data by name.

        Args:
            which: test or validation.
            tasks: use only the first so many tasks, as if there were no others; None = all.
        """
        r, initial, within = self.matrix(which)[:tasks, :tasks], None, []
        if which == "test":  # the untrained net, and the net inside tasks, are evaluated on test data only
            initial = None if self.initial is None else self.initial[:tasks]
            within = [MidTaskEvaluation(w.task, w.step, w.accuracy[:tasks]) for w in self.within]
        return summarize(self.metrics, r, initial, within, self.shares_outputs)

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
