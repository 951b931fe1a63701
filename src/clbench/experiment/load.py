"""load: a finished task of a run, back in memory: ``clbench.load("outputs/a", task=3)``."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig

from clbench.config.hashing import content_hash
from clbench.config.messages import user_message
from clbench.data import TaskSequence
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.learner import Learner
from clbench.nets import Net
from clbench.runs.config_file import configuration, read_config
from clbench.runs.folder import checkpoints
from clbench.strategies import Strategy
from clbench.training.checkpointing import check_schema
from clbench.training.loop import restore


class LoadedRun(NamedTuple):
    """A run as it was when ``task`` had been learned and consolidated.

    Attributes:
        folder: of the run.
        task: index of the last task that was learned.
        cfg: its configuration.
        sequence: all its tasks, with their data.
        learner: the LightningModule, in evaluation mode, on the CPU; ``learner(x, task)`` gives outputs. To train it on, call
            ``learner.train()`` first: a Trainer leaves Dropout in the mode it finds.
        strategy: with what it remembers: importance and anchor, or memory.
    """

    folder: Path
    task: int
    cfg: DictConfig
    sequence: TaskSequence
    learner: Learner
    strategy: Strategy

    @property
    def net(self) -> Net:
        """The net of the learner; of strategies that change it, as they made it (calibrated, or one per task)."""
        return self.learner.net  # type: ignore[return-value]


def load(folder: str | os.PathLike[str], task: int | None = None) -> LoadedRun:
    """The net, the strategy and the data of a run after ``task``, rebuilt from what its folder holds.

    Args:
        folder: ``output_dir`` of the run, or its folder in a sweep.
        task: index of a task whose checkpoint is kept; None = the last that is finished.

    Raises:
        ConfigError: no run in ``folder``, no checkpoint of that task, a configuration that is not the one the checkpoint was
            written with, code that has changed since, or data that is not there.

    Example:
        >>> run = clbench.load("outputs/a", task=3)  # doctest: +SKIP
        >>> batch = next(iter(run.sequence[0].test_dataloader()[0]))  # doctest: +SKIP
        >>> run.learner(batch.x, batch.task).argmax(1)  # doctest: +SKIP
        >>> run.strategy.penalty.importance["net.body.1.weight"]  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    content = read_config(folder)
    saved = checkpoints(folder)
    if not saved:
        raise ConfigError(f"{folder} has no checkpoints: the run needs checkpoints=all or last, and one finished task")
    if task is None:
        task = max(saved)
    if task not in saved:
        raise ConfigError(
            f"task={task}: {folder} has no checkpoint of it, only of {', '.join(map(str, saved))}, counted from 0; a run with "
            "checkpoints=all keeps every task"
        )
    cfg = configuration(content)
    state = torch.load(saved[task], map_location="cpu", weights_only=True)
    check_schema(saved[task], state)
    if content_hash(cfg) != content["content_hash"] or content["config_hash"] != state["config_hash"]:
        raise ConfigError(
            f"{saved[task]} was written with configuration {state['config_hash']}, which {folder / 'config.json'} no longer "
            "holds: the file was changed"
        )
    cfg.init_from = None  # the weights come from the checkpoint
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # building a net draws its first weights
            sequence, learner, strategy = build(cfg)
            strategy.attach(learner, sequence)
            restore(state, learner, strategy)
    except ConfigError:
        raise
    except Exception as error:
        said = user_message(error) or str(error).splitlines()[0].strip() or type(error).__name__
        raise ConfigError(
            f"{folder} cannot be rebuilt: {said}; its code has changed since it ran: use the versions in its metrics.json"
        ) from error
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    learner.eval()
    return LoadedRun(folder, task, cfg, sequence, learner, strategy)
