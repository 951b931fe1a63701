"""TaskLoop: trains, consolidates, evaluates and saves one task after the other, and resumes where an earlier process stopped."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L

from clbench.data import TaskSequence
from clbench.errors import ConfigError
from clbench.learner import Learner
from clbench.metrics.metric import Metric
from clbench.metrics.registry import describe_extra
from clbench.runs.folder import RunFolder
from clbench.seeding import derive, reseed
from clbench.strategies import Strategy
from clbench.training.checkpointing import Checkpoints, MidTaskCheckpoint
from clbench.training.early_stopping import EarlyStopping
from clbench.training.evaluation import Evaluation
from clbench.training.logging import LoggingCallback
from clbench.training.monitor import PenaltyMonitor
from clbench.training.shared_first_task import SharedFirstTask
from clbench.training.timing import Stopwatch, total_seconds

MakeTrainer = Callable[[int, list[L.Callback]], L.Trainer]
"""``make_trainer(index, callbacks)`` returns a new Trainer for task ``index``."""


@dataclass(frozen=True)
class LoopOptions:
    """Options of a TaskLoop, under their names in the configuration.

    Args:
        seed: Random seed of training.
        patience: Epochs without a lower validation loss until a task is stopped early, None for never.
        consolidate: The weights of a task that are kept, ``last`` or ``best``.
        eval_every: Steps between evaluations inside tasks, None for after each task only.
        log_every: Steps between two entries of the training loss.
        save_every: Steps between two mid-task checkpoints, None for none.
        stop_after_task: Number of tasks to learn now, None for all. A later process continues after them.
        metrics: The metrics by name that are computed from the accuracies, None for all metrics of this process.
    """

    seed: int = 0
    patience: int | None = None
    consolidate: str = "last"
    eval_every: int | None = None
    log_every: int = 50
    save_every: int | None = None
    stop_after_task: int | None = None
    metrics: Mapping[str, Metric] | None = None


class TaskLoop:
    """Learns the tasks of a sequence in order with a strategy.

    Every task starts from seeds derived from the run's seed and the task's index, and a checkpoint holds everything the
    following tasks depend on, so a run that was stopped ends bit-identical to one that was not.

    Args:
        sequence: The tasks.
        learner: The module that learns them. It is changed in place.
        strategy: The strategy against forgetting. It is changed in place.
        folder: The run's folder, where the checkpoints are stored.
        options: See ``LoopOptions``.
        shared_first_task: A first task that is trained once for several runs, None to train it here.
        report: Called with the text of each warning of the penalty monitor.

    Attributes:
        callbacks: The callbacks of every Trainer, in the order that they rely on.
        logs: The callback that logs. ``logs.to(loggers)`` sets where to.
        next_task: Index of the first task that is not learned yet.
        outside: Seconds that the run has spent outside this loop, on reading data for example. They count in
            ``seconds.total``.

    Raises:
        ConfigError: The strategy cannot run on this sequence, or an option is out of its range.

    Example:
        >>> loop = TaskLoop(sequence, learner, strategy, folder)  # doctest: +SKIP
        >>> loop.resume()  # doctest: +SKIP
        >>> for index in loop.remaining:  # doctest: +SKIP
        ...     loop.train_task(index, make_trainer)
        ...     loop.save(index)
        >>> loop.results()  # doctest: +SKIP
    """

    def __init__(
        self,
        sequence: TaskSequence,
        learner: Learner,
        strategy: Strategy,
        folder: RunFolder,
        options: LoopOptions | None = None,
        shared_first_task: SharedFirstTask | None = None,
        report: Callable[[str], Any] = warnings.warn,
    ) -> None:
        options = options or LoopOptions()
        self.tasks = tasks_to_learn(options.stop_after_task, len(sequence))
        strategy.check(sequence)
        strategy.attach(learner, sequence)
        self.sequence, self.learner, self.strategy, self.options = sequence, learner, strategy, options
        self.evaluation = Evaluation(
            len(sequence), options.eval_every, options.metrics, sequence.scenario.shares_outputs
        )
        self.logs = LoggingCallback(strategy, self.evaluation, options.log_every)
        self.monitor = PenaltyMonitor(report=report)
        self.seconds = Stopwatch(strategy, self.evaluation)
        self.mid_task = MidTaskCheckpoint(folder, self.seconds, options.save_every, shared_first_task)
        early_stopping = EarlyStopping(options.patience, options.consolidate)
        self.callbacks: list[L.Callback] = [
            *([early_stopping] if early_stopping.needed else []),
            *(strategy, self.evaluation, self.monitor, self.logs, self.mid_task),
        ]
        self.checkpoints = Checkpoints(folder)
        self.importance: list[dict[str, float]] = []
        self.next_task = 0
        self.outside = 0.0

    @property
    def remaining(self) -> range:
        """The indices of the tasks that are still to be learned now."""
        return range(self.next_task, self.tasks)

    def resume(self) -> None:
        """Load the newest task checkpoint of the folder, if it has one.

        Raises:
            ConfigError: The checkpoint belongs to another configuration.
        """
        state = self.checkpoints.load()
        if state is None:
            return
        restore(state, self.learner, self.strategy)
        self.evaluation.load_state_dict(state["evaluation"])
        self.logs.step = state["step"]
        self.monitor.load_state_dict(state["monitor"])
        self.seconds.load(state["seconds"])
        self.mid_task.shared = state["shared_first_task"]
        self.importance = state["importance"]
        self.next_task = state["task"] + 1

    def train_task(self, index: int, make_trainer: MakeTrainer) -> L.Trainer:
        """Train task ``index``, consolidate it, evaluate and log; return the Trainer that did.

        Raises:
            ConfigError: The strategy has state per process, which a mid-task checkpoint of several processes lacks.
            KeyboardInterrupt: The user has interrupted the training.
            Unstable: The weights became non-finite.
        """
        reseed(derive(self.options.seed, "task", index))
        trainer = make_trainer(index, self.callbacks)
        check_mid_task(self.options.save_every, self.strategy, trainer.world_size)
        task = self.strategy.training_data(self.sequence, index)
        with self.mid_task.learning(index, trainer) as checkpoint:
            try:
                trainer.fit(self.learner, datamodule=task, ckpt_path=checkpoint, weights_only=True)
            except SystemExit as stop:  # Lightning turns Ctrl-C into this
                raise KeyboardInterrupt from stop
        self.importance.append(self.strategy.cost())
        self.next_task = index + 1
        self.logs.after_task(index, self.results())
        return trainer

    def save(self, index: int) -> None:
        """Write the task checkpoint after task ``index``."""
        self.checkpoints.save(
            index,
            {
                "learner": self.learner.state_dict(),
                "optimizer": self.learner.optimizer_state,
                "strategy": self.strategy.state_dict(),
                "evaluation": self.evaluation.state_dict(),
                "step": self.logs.step,
                "monitor": self.monitor.state_dict(),
                "seconds": self.seconds.spent(),
                "importance": self.importance,
                "shared_first_task": self.mid_task.shared,
            },
        )

    def results(self) -> dict[str, Any]:
        """Return the metrics so far on test and validation data, the seconds, the cost per task and the warnings."""
        spent = self.seconds.spent()
        spent["total"] = self.outside + total_seconds(spent)
        return {
            **_measured(self.sequence, self.evaluation),
            "seconds": spent,
            "importance": list(self.importance),
            "shared_first_task": self.mid_task.shared,
            "warnings": [warning._asdict() for warning in self.monitor.warnings],
        }


def tasks_to_learn(stop_after_task: int | None, tasks: int) -> int:
    """Return how many of ``tasks`` tasks are learned now.

    Raises:
        ConfigError: ``stop_after_task`` is not between 1 and ``tasks``.
    """
    asked = tasks if stop_after_task is None else stop_after_task
    if not 1 <= asked <= tasks:
        raise ConfigError(f"stop_after_task={stop_after_task}: there are {tasks} tasks; null learns all of them")
    return asked


def check_mid_task(save_every: int | None, strategy: Strategy, processes: int) -> None:
    """Raise ConfigError if a mid-task checkpoint would lack the state of the other processes."""
    if save_every is not None and strategy.per_process and processes > 1:
        raise ConfigError(
            f"save_every={save_every}: {type(strategy).__name__} sums up in each of the {processes} processes: "
            "use save_every=null or trainer.devices=1"
        )


def empty_results(sequence: TaskSequence, metrics: Mapping[str, Metric] | None = None) -> dict[str, Any]:
    """Return the results of a run that has learned nothing, under the same keys as later."""
    spent = dict.fromkeys(("train", "importance", "evaluation", "shared", "total"), 0.0)
    return {**_measured(sequence, Evaluation(len(sequence), metrics=metrics)), "seconds": spent}


def restore(state: dict[str, Any], learner: Learner, strategy: Strategy) -> None:
    """Bring ``learner`` and ``strategy``, attached to their sequence, to a task checkpoint."""
    learner.load_state_dict(state["learner"])
    learner.optimizer_state = state["optimizer"]
    strategy.load_state_dict(state["strategy"])


def _measured(sequence: TaskSequence, evaluation: Evaluation) -> dict[str, Any]:
    def summarized(which: str) -> dict[str, Any]:
        return {"accuracy_matrix": evaluation.matrix(which).tolist(), **evaluation.summarize(which)}

    return {
        **summarized("test"),
        "initial_accuracy": [math.nan] * len(sequence) if evaluation.initial is None else evaluation.initial.tolist(),
        "per_task": evaluation.per_task,
        "within_tasks": [w._asdict() for w in evaluation.within],
        "validation": summarized("validation") if sequence.has_validation else None,
        "extra_metrics": describe_extra(evaluation.metrics),
    }
