"""run: the only loop over tasks. Trains, consolidates, evaluates, saves; goes on where an earlier process stopped."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from clbench.data import TaskSequence
from clbench.doctor import Doctor
from clbench.evaluation import Evaluation
from clbench.folder import RunFolder
from clbench.learner import Learner
from clbench.logs import Logs
from clbench.seeding import derive
from clbench.strategies import Strategy
from clbench.validation import Validation

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
    validation: Validation | None = None,
    eval_every: int | None = None,
    make_loggers: MakeLoggers | None = None,
    log_every: int = 50,
    doctor: Doctor | None = None,
) -> dict[str, Any]:
    """Learn the tasks of ``sequence`` one after the other with ``strategy``.

    Every task starts from seeds derived from ``seed`` and its index, so a run that goes on after task t ends
    bit-identical to one that was never stopped.

    Args:
        sequence: the tasks.
        learner: what learns them; changed in place.
        strategy: what is done against forgetting; changed in place.
        make_trainer: ``make_trainer(index, callbacks)`` gives a new Trainer for a task.
        folder: where the boundary checkpoints lie.
        seed: of training.
        after_task: called with the task's index and the results so far.
        validation: early stopping and the choice of the weights that are consolidated.
        eval_every: steps between evaluations inside tasks; None = after each task only.
        make_loggers: ``make_loggers(start)`` gives the loggers of a run that begins with task ``start``.
        log_every: steps between two entries of the training loss.
        doctor: what examines the penalty; None = one that gives Python warnings.

    Returns:
        The results: accuracy matrix and readings of it, on test and validation data; seconds; importance per task.

    Raises:
        ConfigError: the strategy cannot run on this sequence; the folder is another run's.
        Unstable: weights became non-finite.
    """
    strategy.check(sequence)
    strategy.attach(learner, sequence)
    evaluation = Evaluation(len(sequence), eval_every)
    first = [validation] if validation is not None and validation.needed else []
    logs = Logs(strategy, evaluation, log_every)
    doctor = Doctor() if doctor is None else doctor
    train_seconds, importance = 0.0, []
    start = 0
    state = folder.load()
    if state is not None:
        learner.load_state_dict(state["learner"])
        learner.optimizer_state = state["optimizer"]
        strategy.load_state_dict(state["strategy"])
        evaluation.load_state_dict(state["evaluation"])
        logs.step = state["step"]
        doctor.load_state_dict(state["doctor"])
        train_seconds, strategy.seconds, evaluation.seconds = state["seconds"]
        importance = state["importance"]
        start = state["task"] + 1

    def results() -> dict[str, Any]:
        return _results(sequence, evaluation, strategy, train_seconds, importance, doctor)

    if start == len(sequence):
        return results()
    with logs.to(make_loggers(start) if make_loggers is not None else []):
        began = perf_counter() - train_seconds - strategy.seconds - evaluation.seconds
        for index in range(start, len(sequence)):
            reseed(derive(seed, "task", index))
            trainer = make_trainer(index, [*first, strategy, evaluation, doctor, logs])
            try:
                trainer.fit(learner, datamodule=strategy.training_data(sequence, index))
            except SystemExit as stop:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from stop
            train_seconds = perf_counter() - began - strategy.seconds - evaluation.seconds
            importance.append(strategy.cost())
            logs.after_task(index, results())
            if trainer.is_global_zero:
                folder.save(
                    index,
                    {
                        "learner": learner.state_dict(),
                        "optimizer": learner.optimizer_state,
                        "strategy": strategy.state_dict(),
                        "evaluation": evaluation.state_dict(),
                        "step": logs.step,
                        "doctor": doctor.state_dict(),
                        "seconds": [train_seconds, strategy.seconds, evaluation.seconds],
                        "importance": importance,
                    },
                )
                if after_task is not None:
                    after_task(index, results())
        logs.final(results())
    return results()


def reseed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _results(
    sequence: TaskSequence,
    evaluation: Evaluation,
    strategy: Strategy,
    train_seconds: float,
    importance: list[dict[str, int]],
    doctor: Doctor,
) -> dict[str, Any]:
    transfer = sequence.scenario.shares_outputs
    return {
        **evaluation.readings("test", transfer),
        "initial_accuracy": [math.nan] * len(sequence) if evaluation.initial is None else evaluation.initial.tolist(),
        "per_task": evaluation.per_task,
        "within_tasks": [w._asdict() for w in evaluation.within],
        "validation": evaluation.readings("validation", transfer) if sequence.has_validation else None,
        "seconds": {"train": train_seconds, "importance": strategy.seconds, "evaluation": evaluation.seconds},
        "importance": list(importance),
        "warnings": [w._asdict() for w in doctor.warnings],
    }
