"""Train, consolidate, evaluate and save the tasks of a sequence in order, and resume interrupted runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from clbench.data import TaskSequence
from clbench.data.fingerprint import check_same_data
from clbench.errors import ConfigError, Unstable, expected
from clbench.learner import Learner
from clbench.metrics.metric import Metric
from clbench.metrics.registry import describe_extra
from clbench.runs.folder import RunFolder
from clbench.seeding import derive, reseed
from clbench.strategies import Strategy
from clbench.training.checkpoint_file import is_raised_while_loading, refuse_unfit_state, unfit_message
from clbench.training.checkpointing import Checkpoints, MidTaskCheckpoint
from clbench.training.early_stopping import EarlyStopping
from clbench.training.evaluation import Evaluation
from clbench.training.logging import LoggingCallback
from clbench.training.monitor import PenaltyMonitor
from clbench.training.partial import partial_training
from clbench.training.shared_first_task import SharedFirstTask
from clbench.training.timing import Stopwatch, total_seconds

MakeTrainer = Callable[[int, list[L.Callback]], L.Trainer]
"""``make_trainer(index, callbacks)`` returns a new Trainer for task ``index``."""


@dataclass(frozen=True)
class LoopOptions:
    """Options of a TaskLoop, with their names in the configuration.

    Args:
        seed: Random seed of the training.
        patience: Epochs without a lower validation loss until a task is stopped early, None for never.
        consolidate: The weights of a task that are kept, ``last`` or ``best``.
        eval_every: Steps between evaluations inside tasks, None for after each task only.
        eval_tasks: Tasks that are evaluated, ``all`` or ``seen``, see ``Evaluation``.
        log_every: Steps between two entries of the training loss.
        save_every: Steps between two mid-task checkpoints, None for no mid-task checkpoints.
        stop_after_task: Number of tasks to learn now, None for all. A later process can resume after them.
        metrics: Metrics by name, None for all that are registered in this process.
    """

    seed: int = 0
    patience: int | None = None
    consolidate: str = "last"
    eval_every: int | None = None
    eval_tasks: str = "all"
    log_every: int = 50
    save_every: int | None = None
    stop_after_task: int | None = None
    metrics: Mapping[str, Metric] | None = None


class TaskLoop:
    """Loop that trains a learner on the tasks of a sequence with a strategy.

    Every task starts with a seed derived from the seed of the run and the index of the task. A checkpoint contains all state
    that the following tasks depend on. A resumed run is therefore bit-identical to an uninterrupted one.

    Args:
        sequence: The tasks.
        learner: The module that is trained. It is changed in place.
        strategy: The strategy against forgetting. It is changed in place.
        folder: The run's folder, which contains the checkpoints.
        options: Options of the training, None for the defaults of ``LoopOptions``.
        shared_first_task: First task that is trained once for several runs, None for no sharing.
        report: Function that receives the text of each warning of the penalty monitor.

    Attributes:
        callbacks: The callbacks of every Trainer, in the required order.
        logs: The callback that logs. Inside ``with logs.to(loggers):`` it writes to these loggers.
        next_task: Index of the first task that is not learned yet.
        partial: Tasks that were not trained on all their batches or steps, with the reason.
        outside: Seconds of the run outside this loop, for example for reading data. They are part of ``seconds.total``.

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
        self.evaluation = Evaluation.of(sequence, options.eval_every, options.metrics, options.eval_tasks, strategy)
        self.logs = LoggingCallback(strategy, self.evaluation, options.log_every)
        self.monitor = PenaltyMonitor(report=report)
        self.seconds = Stopwatch(strategy, self.evaluation)
        self.mid_task = MidTaskCheckpoint(folder, self.seconds, options.save_every, shared_first_task)
        early_stopping = EarlyStopping(options.patience, options.consolidate)
        early_stopping.check(sequence)
        self.callbacks: list[L.Callback] = [
            *([early_stopping] if early_stopping.is_needed else []),
            *(strategy, self.evaluation, self.monitor, self.logs, self.mid_task),
        ]
        self.checkpoints = Checkpoints(folder)
        self.importance: list[dict[str, float]] = []
        self.partial: list[str] = []
        self.next_task = 0
        self.outside = 0.0

    @property
    def remaining(self) -> range:
        """The indices of the tasks that this process still has to learn."""
        return range(self.next_task, self.tasks)

    def resume(self) -> None:
        """Load the newest task checkpoint of the folder, if one exists.

        Raises:
            ConfigError: The checkpoint is damaged, or belongs to another configuration, to other data or to other code.
        """
        state = self.checkpoints.load()
        if state is None:
            return
        check_same_data(state.get("fingerprint"), self.sequence.fingerprint, self.checkpoints.folder.path)
        with refuse_unfit_state(self.checkpoints.folder.path / f"checkpoints/task_{state['task']}.ckpt"):
            check_strategy_state(state, self.strategy)
            restore(state, self.learner, self.strategy)
            self.evaluation.load_state_dict(state["evaluation"])
            self.logs.step = state["step"]
            self.monitor.load_state_dict(state["monitor"])
            self.seconds.load(state["seconds"])
            self.mid_task.shared = state["shared_first_task"]
            self.importance = state["importance"]
            self.partial = state.get("partial") or []  # checkpoints of older versions have no such key
        self.next_task = state["task"] + 1

    def train_task(self, index: int, make_trainer: MakeTrainer) -> L.Trainer:
        """Train task ``index``, consolidate it, evaluate and log; return the Trainer.

        Raises:
            ConfigError: The strategy has state per process, which mid-task checkpoints do not contain.
            KeyboardInterrupt: The user interrupted the training.
            Unstable: The weights became non-finite.
        """
        reseed(derive(self.options.seed, "task", index))
        trainer = make_trainer(index, self.callbacks)
        check_mid_task(self.options.save_every, self.strategy, trainer.world_size)
        task = self.strategy.training_data(self.sequence, index)
        with self.mid_task.learning(index, trainer) as checkpoint:
            try:
                trainer.fit(self.learner, datamodule=task, ckpt_path=checkpoint, weights_only=True)
            except SystemExit as stop:  # Lightning converts Ctrl-C to SystemExit
                raise KeyboardInterrupt from stop
            except ConfigError:
                raise
            except Exception as error:
                if checkpoint is not None and is_raised_while_loading(error):
                    raise ConfigError(unfit_message(checkpoint, error)) from error
                if (message := callback_message(error)) is not None:
                    raise ConfigError(message) from error
                if isinstance(error, MisconfigurationException):
                    raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
                raise
        if self.evaluation.newest != index:
            raise ConfigError(
                f"task {index + 1} was not trained, because the options of the Trainer allow no step. Try a longer "
                "trainer.max_time, or remove it."
            )
        if (reason := partial_training(trainer)) is not None:
            self.partial.append(f"task {index + 1}: {reason}")
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
                "partial": self.partial,
                "shared_first_task": self.mid_task.shared,
                "fingerprint": self.sequence.fingerprint,
            },
        )

    def results(self) -> dict[str, Any]:
        """Return the metrics so far on test and validation data, the seconds, the cost of each task and the warnings."""
        spent = self.seconds.spent()
        spent["total"] = self.outside + total_seconds(spent)
        return {
            **_evaluated(self.sequence, self.evaluation),
            "seconds": spent,
            "importance": list(self.importance),
            "partial": list(self.partial),
            "shared_first_task": self.mid_task.shared,
            "warnings": [warning._asdict() for warning in self.monitor.warnings],
        }


def tasks_to_learn(stop_after_task: int | None, tasks: int) -> int:
    """Return the number of tasks to learn now.

    Raises:
        ConfigError: ``stop_after_task`` is not between 1 and ``tasks``.
    """
    number = tasks if stop_after_task is None else stop_after_task
    if not 1 <= number <= tasks:
        rule = f"an integer from 1 to {tasks}, the number of tasks, or null for all"
        raise ConfigError(expected("stop_after_task", stop_after_task, rule))
    return number


def callback_message(error: BaseException) -> str | None:
    """Return a one-line message if a callback of Lightning raised ``error``, None otherwise."""
    traceback = error.__traceback__
    while traceback is not None and not isinstance(error, ConfigError | Unstable):
        callback = traceback.tb_frame.f_locals.get("self")
        if isinstance(callback, L.Callback) and type(callback).__module__.startswith("lightning."):
            text = " ".join(str(error).split())
            return f"trainer.callbacks: {type(callback).__name__} cannot run here: {text} Change its options or leave it out"
        traceback = traceback.tb_next
    return None


def check_mid_task(save_every: int | None, strategy: Strategy, processes: int) -> None:
    """Raise ConfigError if mid-task checkpoints would lack the state of other processes."""
    if save_every is not None and strategy.per_process and processes > 1:
        raise ConfigError(
            f"save_every={save_every}: {type(strategy).__name__} has different state in each of the {processes} processes, which "
            "a mid-task checkpoint does not contain. Try save_every=null or trainer.devices=1."
        )


def empty_results(sequence: TaskSequence, metrics: Mapping[str, Metric] | None = None) -> dict[str, Any]:
    """Return the results of a run before its first task, with the same keys as after it."""
    spent = dict.fromkeys(("train", "importance", "evaluation", "shared", "total"), 0.0)
    return {**_evaluated(sequence, Evaluation.of(sequence, metrics=metrics)), "seconds": spent}


def check_strategy_state(state: dict[str, Any], strategy: Strategy) -> None:
    """Raise ValueError if a task checkpoint has no state of a strategy that has one even before its first task."""
    if not state["strategy"] and strategy.state_dict():
        raise ValueError(f"the state of {type(strategy).__name__} is empty")


def restore(state: dict[str, Any], learner: Learner, strategy: Strategy) -> None:
    """Load a task checkpoint into ``learner`` and ``strategy``. The strategy must already be attached."""
    learner.load_state_dict(state["learner"])
    learner.optimizer_state = state["optimizer"]
    strategy.load_state_dict(state["strategy"])


def _evaluated(sequence: TaskSequence, evaluation: Evaluation) -> dict[str, Any]:
    quality = evaluation.quality

    def summarized(which: str) -> dict[str, Any]:
        r = evaluation.matrix(which).tolist()
        return {quality.key("accuracy_matrix"): r, "quality_matrix": r, **evaluation.summarize(which)}

    initial = [math.nan] * len(sequence) if evaluation.initial is None else evaluation.initial.tolist()
    return {
        "quality": quality.describe(),
        **summarized("test"),
        quality.key("initial_accuracy"): initial,
        "per_task": evaluation.per_task,
        "within_tasks": [
            {"task": w.task, "step": w.step, quality.key("accuracy"): list(w.accuracy)} for w in evaluation.within
        ],
        "validation": summarized("validation") if sequence.has_validation else None,
        "extra_metrics": describe_extra(evaluation.metrics),
    }
