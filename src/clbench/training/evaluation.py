"""Evaluate a learner on every task, and compute the metrics from the qualities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor

from clbench.data import Batch, Task, TaskSequence, task_of
from clbench.errors import ConfigError, expected
from clbench.learner import Learner, learner_of
from clbench.metrics.accuracy_matrix import accuracy_matrix
from clbench.metrics.formulas import MidTaskEvaluation
from clbench.metrics.metric import Metric
from clbench.metrics.quality import Quality
from clbench.metrics.registry import load_metrics, summarize
from clbench.strategies import Strategy
from clbench.training.measures import FINETUNE, LabelMeasure, Measure, measure_of, measured


class Evaluation(L.Callback):
    """Callback that evaluates on the test (and validation) data of every task after each task.

    The callback must follow the strategy, so that it evaluates the net from which the next task starts.

    Args:
        tasks: Number of tasks T.
        every: Steps between evaluations on test data inside tasks, None for evaluations after each task only.
        metrics: Metrics by name, None for all metrics of this process.
        shares_outputs: Whether all tasks have the same outputs, so that forward transfer is defined.
        measure: Measure of the targets, which defines the quality.
        outputs: Number of outputs of a task.
        eval_tasks: Tasks that are evaluated, ``all``, or ``seen``: after task i only tasks 0..i, and none before training. The
            other values of R and b are then nan.

    Raises:
        ConfigError: ``every`` is below 1, or ``eval_tasks`` is unknown.

    Attributes:
        metrics: The metrics by name.
        strategy: Strategy whose ``predict`` is evaluated.
        quality: Quality of a task, such as its accuracy.
        matrices: R (T, T) in float64 on ``test`` and ``validation`` data, nan in the rows of tasks not learned yet.
        initial: Qualities before training b (T,), None if the scenario does not define them.
        within: The evaluations inside tasks.
        per_task: Final quality of each task, after the last task, with nll and ece of one label per example.
    """

    def __init__(
        self,
        tasks: int,
        every: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
        shares_outputs: bool = False,
        measure: type[Measure] = LabelMeasure,
        outputs: int = 0,
        eval_tasks: str = "all",
    ) -> None:
        if eval_tasks not in ("all", "seen"):
            raise ConfigError(expected("eval_tasks", eval_tasks, "all or seen"))
        if every is not None and every < 1:
            raise ConfigError(expected("eval_every", every, "an integer >= 1 or null"))
        self.strategy = FINETUNE
        self.every = every
        self.metrics = load_metrics() if metrics is None else metrics
        self.shares_outputs = shares_outputs
        self.newest = -1  # index of the task that was evaluated last
        self.within: list[MidTaskEvaluation] = []
        self.measure, self.outputs = measure, outputs
        self.tasks, self.only_seen = tasks, eval_tasks == "seen"
        self.matrices = {
            which: torch.full((tasks, tasks), torch.nan, dtype=torch.double) for which in ("test", "validation")
        }
        self.initial: Tensor | None = None
        self.per_task: list[dict[str, float]] = []
        self.seconds = 0.0

    @classmethod
    def of(
        cls,
        sequence: TaskSequence,
        every: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
        eval_tasks: str = "all",
        strategy: Strategy = FINETUNE,
    ) -> Evaluation:
        """Return the evaluation of the tasks of ``sequence`` with the predictions of ``strategy``."""
        measure, shares_outputs = measure_of(sequence, strategy), sequence.scenario.shares_outputs
        evaluation = cls(len(sequence), every, metrics, shares_outputs, measure, max(sequence.sizes), eval_tasks)
        evaluation.strategy = strategy
        return evaluation

    @property
    def quality(self) -> Quality:
        return self.measure.quality

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task: Task = task_of(trainer)
        is_new = trainer.ckpt_path is None
        # class-incrementally no class competes before training, so b is undefined
        if is_new and task.index == 0 and task.sequence.scenario.name != "class" and not self.only_seen:
            self.initial = self._values(self._measured(trainer, learner, task.test_dataloader()))

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
        values = self._values(self._measured(trainer, learner, task.test_dataloader()))
        self.within.append(MidTaskEvaluation(task.index, step, values.tolist()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task: Task = task_of(trainer)
        self.newest = task.index
        found = self._measured(trainer, learner, task.test_dataloader())
        self.matrices["test"][task.index] = self._values(found)
        if task.sequence.has_validation:
            found_too = self._measured(trainer, learner, task.val_dataloader())
            self.matrices["validation"][task.index] = self._values(found_too)
        if task.index == len(task.sequence) - 1:
            self.per_task = [measure.details() for measure in found]

    def matrix(self, which: str) -> Tensor:
        """Return R on ``test`` or ``validation`` data, nan in the rows of tasks not learned yet."""
        return self.matrices[which]

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
        return summarize(self.metrics, r, initial, within, self.shares_outputs, self.quality)

    def state_dict(self) -> dict[str, Any]:
        within = [list(w) for w in self.within]
        return {"matrices": self.matrices, "initial": self.initial, "per_task": self.per_task, "within": within}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "counts" in state_dict:  # a checkpoint of an older version: correct answers and examples
            self.matrices = {which: accuracy_matrix(*counts) for which, counts in state_dict["counts"].items()}
        else:
            self.matrices = state_dict["matrices"]
        self.initial = state_dict["initial"]
        self.per_task = state_dict["per_task"]
        self.within = [MidTaskEvaluation(*w) for w in state_dict["within"]]

    def _measured(self, trainer: L.Trainer, learner: Learner, loaders: Sequence[Iterable[Batch]]) -> list[Measure]:
        """Return the measure of each loader of a task that is evaluated, over all processes."""
        start = perf_counter()
        used = loaders[: task_of(trainer).index + 1] if self.only_seen else loaders
        found = measured(learner, used, self.measure, self.outputs, self.strategy)
        if trainer.world_size > 1:
            for measure in found:
                measure.reduce(trainer, learner.device)
        self.seconds += perf_counter() - start
        return found

    def _values(self, measures: Sequence[Measure]) -> Tensor:
        """Return the quality of every task (T,), nan for tasks that are not evaluated."""
        values = [measure.value() for measure in measures]
        return torch.tensor(values + [torch.nan] * (self.tasks - len(values)), dtype=torch.double)
