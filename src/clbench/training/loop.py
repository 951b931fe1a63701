"""run: the only loop over tasks. Trains, consolidates, evaluates, saves; goes on where an earlier process stopped."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from clbench.data import TaskSequence
from clbench.errors import ConfigError
from clbench.learner import Learner
from clbench.metrics.metric import Metric
from clbench.metrics.registry import describe_extra
from clbench.runs.folder import RunFolder
from clbench.seeding import derive
from clbench.strategies import Strategy
from clbench.training.checkpointing import Checkpoints, MidTaskCheckpoint
from clbench.training.early_stopping import EarlyStopping
from clbench.training.evaluation import Evaluation
from clbench.training.logging import LoggingCallback
from clbench.training.monitor import PenaltyMonitor
from clbench.training.shared_first_task import SharedFirstTask
from clbench.training.timing import Stopwatch, total_seconds

MakeTrainer = Callable[[int, list[L.Callback]], L.Trainer]
AfterTask = Callable[[int, dict[str, Any]], None]
MakeLoggers = Callable[[int], Sequence[Logger]]


def run(
    sequence: TaskSequence,
    learner: Learner,
    strategy: Strategy,
    make_trainer: MakeTrainer,
    folder: RunFolder,
    seed: int = 0,
    after_task: AfterTask | None = None,
    validation: EarlyStopping | None = None,
    eval_every: int | None = None,
    make_loggers: MakeLoggers | None = None,
    log_every: int = 50,
    save_every: int | None = None,
    shared_first_task: SharedFirstTask | None = None,
    stop_after_task: int | None = None,
    doctor: PenaltyMonitor | None = None,
    metrics: Mapping[str, Metric] | None = None,
    outside: float = 0.0,
) -> dict[str, Any]:
    """Learn the tasks of ``sequence`` one after the other with ``strategy``.

    Every task starts from seeds derived from ``seed`` and its index, and a checkpoint inside a task holds all that goes on
    there, so a run that was stopped ends bit-identical to one that was not.

    Args:
        sequence: the tasks.
        learner: what learns them; changed in place.
        strategy: what is done against forgetting; changed in place.
        make_trainer: ``make_trainer(index, callbacks)`` gives a new Trainer for a task.
        folder: where the checkpoints lie.
        seed: of training.
        after_task: called with the task's index and the results so far.
        validation: early stopping and the choice of the weights that are consolidated.
        eval_every: steps between evaluations inside tasks; None = after each task only.
        make_loggers: ``make_loggers(start)`` gives the loggers of a run that begins with task ``start``.
        log_every: steps between two entries of the training loss.
        save_every: steps between two checkpoints inside a task; None = only after each task.
        prefix: what is shared with other runs of the first task; None = nothing.
        stop_after_task: learn only so many tasks now; a later call goes on after them. None = all.
        doctor: what examines the penalty; None = one that gives Python warnings.
        metrics: what is computed from the accuracies; None = all metrics of this process.
        outside: seconds that the run has taken outside this loop (data read, net built); they count in ``seconds.total_seconds``.

    Returns:
        The results: accuracy matrix and metrics, on test and validation data; seconds; importance per task.

    Raises:
        ConfigError: the strategy cannot run on this sequence; the folder is another run's; ``stop_after_task`` is not one of
            1 to their number.
        Unstable: weights became non-finite.
    """
    tasks = len(sequence) if stop_after_task is None else stop_after_task
    if not 1 <= tasks <= len(sequence):
        raise ConfigError(
            f"stop_after_task={stop_after_task}: there are {len(sequence)} tasks; null learns all of them"
        )
    strategy.check(sequence)
    strategy.attach(learner, sequence)
    evaluation = Evaluation(len(sequence), eval_every, metrics, sequence.scenario.shares_outputs)
    first = [validation] if validation is not None and validation.needed else []
    logs = LoggingCallback(strategy, evaluation, log_every)
    doctor = PenaltyMonitor() if doctor is None else doctor
    seconds = Stopwatch(strategy, evaluation)
    midtask = MidTaskCheckpoint(folder, seconds, save_every, shared_first_task)
    importance: list[dict[str, float]] = []
    start = 0
    checkpoints = Checkpoints(folder)
    state = checkpoints.load()
    if state is not None:
        restore(state, learner, strategy)
        evaluation.load_state_dict(state["evaluation"])
        logs.step = state["step"]
        doctor.load_state_dict(state["doctor"])
        seconds.load(state["seconds"])
        midtask.shared = state["shared_first_task"]
        importance = state["importance"]
        start = state["task"] + 1

    def results() -> dict[str, Any]:
        spent = seconds.spent()
        spent["total"] = outside + total_seconds(spent)
        measured = {"seconds": spent, "importance": list(importance), "shared_first_task": midtask.shared}
        said = [warning._asdict() for warning in doctor.warnings]
        return {**_measured(sequence, evaluation), **measured, "warnings": said}

    if start >= tasks:
        return results()
    with logs.to(make_loggers(start) if make_loggers is not None else []):
        for index in range(start, tasks):
            reseed(derive(seed, "task", index))
            trainer = make_trainer(index, [*first, strategy, evaluation, doctor, logs, midtask])
            if save_every is not None and strategy.per_process and trainer.world_size > 1:
                raise ConfigError(
                    f"save_every={save_every}: {type(strategy).__name__} sums up in each of the {trainer.world_size} processes: "
                    "use save_every=null or trainer.devices=1"
                )
            task = strategy.training_data(sequence, index)
            with midtask.learning(index, trainer) as checkpoint:
                try:
                    trainer.fit(learner, datamodule=task, ckpt_path=checkpoint, weights_only=True)
                except SystemExit as stop:  # what Lightning makes of Ctrl-C
                    raise KeyboardInterrupt from stop
            importance.append(strategy.cost())
            logs.after_task(index, results())
            if trainer.is_global_zero:
                checkpoints.save(
                    index,
                    {
                        "learner": learner.state_dict(),
                        "optimizer": learner.optimizer_state,
                        "strategy": strategy.state_dict(),
                        "evaluation": evaluation.state_dict(),
                        "step": logs.step,
                        "doctor": doctor.state_dict(),
                        "seconds": seconds.spent(),
                        "importance": importance,
                        "shared_first_task": midtask.shared,
                    },
                )
                if after_task is not None:
                    after_task(index, results())
        logs.final(results())
    return results()


def empty_results(sequence: TaskSequence, metrics: Mapping[str, Metric] | None = None) -> dict[str, Any]:
    """Return the results of a run that has learned nothing, under the same keys as later."""
    spent = dict.fromkeys(("train", "importance", "evaluation", "shared", "total"), 0.0)
    return {**_measured(sequence, Evaluation(len(sequence), metrics=metrics)), "seconds": spent}


def restore(state: dict[str, Any], learner: Learner, strategy: Strategy) -> None:
    """Bring ``learner`` and ``strategy``, attached to their sequence, to a boundary checkpoint."""
    learner.load_state_dict(state["learner"])
    learner.optimizer_state = state["optimizer"]
    strategy.load_state_dict(state["strategy"])


def reseed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
