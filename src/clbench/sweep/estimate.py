"""How long runs will take and how much they keep: the first steps of one run of each strategy, timed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer

from clbench.build import build
from clbench.cli import quiet_lightning
from clbench.config import budget
from clbench.folder import RunFolder
from clbench.sequence import run
from clbench.sweep.cells import Cell

STEPS = 20  # of a trial


class Estimate(NamedTuple):
    """Of one run."""

    seconds: float
    bytes: int


class _Enough(Exception):
    """The first task has been learned."""


def estimates(cells: Sequence[Cell]) -> list[Estimate]:
    """What each cell will take, from one trial per strategy: real steps, one consolidation, evaluations, a checkpoint."""
    tried: dict[str, Estimate] = {}
    for cell in cells:
        if cell.strategy not in tried:
            tried[cell.strategy] = trial(cell)
    return [tried[cell.strategy] for cell in cells]


def trial(cell: Cell) -> Estimate:
    """One run, from ``STEPS`` steps of its first task.

    Raises:
        ConfigError: the configuration cannot be run.
    """
    quiet_lightning()
    cfg, began = cell.cfg, perf_counter()
    torch.set_num_threads(cfg.threads or 1)
    sequence, learner, strategy = build(cfg)
    built = perf_counter() - began
    tasks = len(sequence)
    limits = [budget(cfg, index, tasks) for index in range(tasks)]
    batches = [-(-task.examples // sequence.batch_size) for task in sequence]
    steps = sum(
        limit["max_steps"] if limit["max_steps"] > 0 else limit["max_epochs"] * n
        for limit, n in zip(limits, batches, strict=True)
    )
    few = min(STEPS, steps)
    found: dict[str, Any] = {}

    def make_trainer(index: int, callbacks: list[Callback]) -> Trainer:
        make = instantiate(cfg.trainer, _partial_=True)
        return make(callbacks=callbacks, max_epochs=-1, max_steps=few, enable_progress_bar=False)

    def after_first(index: int, results: dict[str, Any]) -> None:
        found.update(results)
        raise _Enough

    with TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary), cell.hash, cfg.checkpoints)
        with suppress(_Enough):
            run(sequence, learner, strategy, make_trainer, folder, seed=cfg.seed, after_task=after_first)
        kept = sum(file.stat().st_size for file in Path(temporary).rglob("*.ckpt"))
    seconds = found["seconds"]
    evaluations = (tasks + 1) / 2  # two were timed, before and after the first task
    return Estimate(
        built + seconds["train"] * steps / few + seconds["importance"] * tasks + seconds["evaluation"] * evaluations,
        kept * (tasks if cfg.checkpoints == "all" else 1),
    )
