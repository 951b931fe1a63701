"""Evaluate a learner on every task, and compute the metrics from the accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor

from clbench.data import Batch, Task, task_of
from clbench.errors import ConfigError, expected
from clbench.importance.preserve_state import preserve_state
from clbench.learner import Learner, learner_of, learner_outputs
from clbench.metrics.accuracy_matrix import BINS, accuracy_matrix, calibration_gaps, nll
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.metric import Metric
from clbench.metrics.registry import load_metrics, summarize

CORRECT, EXAMPLES, NLL, GAPS = 0, 1, 2, 3


def tally(module: Learner, loaders: Iterable[Iterable[Batch]]) -> Tensor:
    """Return the counts of each loader: correct answers, examples, sum of the nll, and calibration gaps.

    The module is evaluated in eval mode and in the precision of its weights, for every training precision. Its state is
    preserved.

    Returns:
        Counts (loaders, 3 + bins), float64 on the CPU.
    """
    rows = []
    with preserve_state(module), torch.no_grad():
        for loader in loaders:
            row = torch.zeros(3 + BINS, dtype=torch.double)
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
    """Callback that evaluates on the test (and validation) data of every task after each task.

    The callback must follow the strategy, so that it evaluates the net from which the next task starts.

    Args:
        tasks: Number of tasks T.
        every: Steps between evaluations on test data inside tasks, None for evaluations after each task only.
        metrics: Metrics by name, None for all metrics of this process.
        shares_outputs: Whether all tasks have the same outputs, so that forward transfer is defined.

    Attributes:
        metrics: The metrics by name.
        counts: Correct answers and examples (2, T, T) on ``test`` and ``validation`` data.
        initial: Accuracies before training b (T,), None if the scenario does not define them.
        within: The evaluations inside tasks.
        per_task: Final accuracy, nll and ece of each task, after the last task.
    """

    def __init__(
        self,
        tasks: int,
        every: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
        shares_outputs: bool = False,
    ) -> None:
        if every is not None and every < 1:
            raise ConfigError(expected("eval_every", every, "an integer >= 1 or null"))
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
        is_new = trainer.ckpt_path is None
        # class-incrementally no class competes before training, so b is undefined
        if is_new and task.index == 0 and task.sequence.scenario.name != "class":
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
        """Return R on ``test`` or ``validation`` data, nan in the rows of tasks not learned yet."""
        return accuracy_matrix(*self.counts[which])

    def summarize(self, which: str, tasks: int | None = None) -> dict[str, float | None]:
        """Return the metrics on ``test`` or ``validation`` data by name.

        Args:
            which: ``test`` or ``validation``.
            tasks: Number of first tasks that are used, None for all tasks.
        """
        r, initial, within = self.matrix(which)[:tasks, :tasks], None, []
        if which == "test":  # evaluations before training and inside tasks only use test data
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
        """Return the counts summed over all processes."""
        start = perf_counter()
        counts = tally(learner, loaders)
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts.to(learner.device), reduce_op="sum").cpu()
        self.seconds += perf_counter() - start
        return counts
