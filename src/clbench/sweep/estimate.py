"""Estimate the time and the disk space of runs from the first steps of one run of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer

from clbench.config.display import print_once
from clbench.config.messages import silence_lightning
from clbench.config.options import budget
from clbench.errors import ConfigError, Unstable
from clbench.experiment.build import build, build_trainer, shared_first_task_key
from clbench.runs.folder import RunFolder
from clbench.runs.sweep_log import duration
from clbench.sweep.grid import PlannedRun
from clbench.training.loop import LoopOptions, TaskLoop

STEPS = 20  # number of timed steps


class CostEstimate(NamedTuple):
    """Estimated cost of one run.

    Attributes:
        seconds: Seconds of the run.
        first: Seconds of the training of the first task, which runs with the same ``key`` share.
        bytes: Size of the checkpoints.
        key: Key of the shared first task, None for no sharing.
    """

    seconds: float
    first: float
    bytes: int
    key: str | None


def estimate_cost(runs: Sequence[PlannedRun]) -> str:
    """Return the estimated cost of ``runs`` as text, from one trial for all runs that differ only in lam and seed."""
    tried: dict[str, CostEstimate | None] = {}
    each, unknown = [], 0
    for run in runs:
        if (kind := run.kind) not in tried:
            try:
                tried[kind] = time_trial(run)
            except (ConfigError, Unstable, InstantiationException):  # the sweep will report the error
                tried[kind] = None
        if (estimate := tried[kind]) is None:
            unknown += 1
            continue
        each.append(estimate._replace(key=shared_first_task_key(run.cfg, instantiate(run.cfg.strategy), {})))
    keys = Counter(e.key for e in each if e.key is not None)
    first = {e.key: e.first for e in each}
    saved = sum(first[key] * (times - 1) for key, times in keys.items())
    seconds, size = sum(e.seconds for e in each) - saved, sum(e.bytes for e in each)
    text = f"about {duration(seconds)} in one process, {size / 1e6:,.0f} MB of checkpoints"
    if any(times > 1 for times in keys.values()):
        shared = sum(times > 1 for times in keys.values())
        fewer = sum(keys.values()) - len(keys)
        text += f"; {shared} shared first tasks replace {fewer} others, which saves about {duration(saved)}"
    return text + (f"; {unknown} runs cannot start and are not counted" if unknown else "")


def time_trial(run: PlannedRun) -> CostEstimate:
    """Estimate the cost of one run from ``STEPS`` steps of its first task.

    Raises:
        ConfigError, Unstable: The configuration cannot be trained.
    """
    silence_lightning()
    cfg, start = run.cfg, perf_counter()
    torch.set_num_threads(cfg.threads or 1)
    sequence, learner, strategy = build(cfg)
    build_seconds = perf_counter() - start
    tasks = len(sequence)
    limits = [budget(cfg, index, tasks) for index in range(tasks)]
    learned = [strategy.training_data(sequence, index) for index in range(tasks)]
    batches = [-(-task.examples // sequence.batch_size) for task in learned]
    steps = sum(
        limit["max_steps"] if limit["max_steps"] > 0 else limit["max_epochs"] * n
        for limit, n in zip(limits, batches, strict=True)
    )
    few = min(STEPS, steps)
    in_first = limits[0]["max_steps"] if limits[0]["max_steps"] > 0 else limits[0]["max_epochs"] * batches[0]

    def make_trainer(index: int, callbacks: list[Callback]) -> Trainer:
        length = {"max_epochs": -1, "max_steps": few}
        return build_trainer(cfg, callbacks, length | {"enable_progress_bar": False})

    with TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary), run.hash, cfg.checkpoints)
        loop = TaskLoop(sequence, learner, strategy, folder, LoopOptions(seed=cfg.seed), report=print_once)
        loop.train_task(0, make_trainer)
        loop.save(0)
        seconds = loop.results()["seconds"]
        kept = sum(file.stat().st_size for file in Path(temporary).rglob("*.ckpt"))
    evaluations = (tasks + 1) / 2  # the trial evaluated twice, before and after the first task
    step = seconds["train"] / few
    return CostEstimate(
        build_seconds + step * steps + seconds["importance"] * tasks + seconds["evaluation"] * evaluations,
        step * in_first,
        kept * (tasks if cfg.checkpoints == "all" else 1),
        None,
    )
