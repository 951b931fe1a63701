"""Load a run after a finished task: ``clbench.load("outputs/a", task=3)``."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import content_hash
from clbench.config.messages import user_message
from clbench.data import TaskSequence
from clbench.data.fingerprint import check_same_data
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.experiment.trust import check_trust
from clbench.learner import Learner
from clbench.nets import Net
from clbench.runs.config_file import FILE, configuration, read_config
from clbench.runs.folder import checkpoints
from clbench.strategies import Strategy
from clbench.training.checkpoint_file import read_checkpoint
from clbench.training.loop import restore


class LoadedRun(NamedTuple):
    """State of a run after ``task`` was learned and consolidated.

    Attributes:
        folder: The run's folder.
        task: Index of the last learned task.
        cfg: The configuration.
        sequence: All tasks of the run, with their data.
        learner: The LightningModule, in evaluation mode, on the CPU. ``learner(x, task)`` returns outputs. Call
            ``learner.train()`` before you train it further, because a Trainer does not change the mode of Dropout.
        strategy: The strategy with its state, such as importance and anchor, or its memory.
    """

    folder: Path
    task: int
    cfg: DictConfig
    sequence: TaskSequence
    learner: Learner
    strategy: Strategy

    @property
    def net(self) -> Net:
        """The net of the learner, including changes of the strategy (calibration, or one net per task)."""
        return self.learner.net  # type: ignore[return-value]


def load(
    folder: str | os.PathLike[str],
    task: int | None = None,
    *,
    trust: Sequence[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
) -> LoadedRun:
    """Rebuild the net, the strategy and the data of a run after ``task`` from its folder.

    Args:
        folder: ``output_dir`` of the run, or the folder of one run in a sweep.
        task: Index of a task with a checkpoint, None for the last finished task.
        trust: Modules, or full names of functions and classes, that the configuration may name in addition to those of
            clbench, torch and torchvision, such as ``["my_module"]``. They can execute any code.
        data_dir: Folder of the data sets, None for ``CLBENCH_DATA_DIR`` or its default. The ``data_dir`` in the folder is not
            used, because it may be from somebody else.

    Raises:
        ConfigError: ``folder`` has no run or no checkpoint of the task, it names code that is neither in ``trust`` nor on the
            list of ``clbench.experiment.trust``, its configuration or the code has changed since the checkpoint was written,
            or the data is not available or has changed.

    Example:
        >>> run = clbench.load("outputs/a", task=3)  # doctest: +SKIP
        >>> batch = next(iter(run.sequence[0].test_dataloader()[0]))  # doctest: +SKIP
        >>> run.learner(batch.x, batch.task).argmax(1)  # doctest: +SKIP
        >>> run.strategy.penalty.importance["net.body.1.weight"]  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    content = read_config(folder)
    cfg = configuration(content, data_dir)
    check_trust(OmegaConf.to_container(cfg, resolve=True), folder / FILE, cfg.data_dir, trust)  # type: ignore[arg-type]
    saved = checkpoints(folder)
    if not saved:
        raise ConfigError(
            f"{folder}: expected a task checkpoint, found none. Try a run with checkpoints=all or last and a finished task."
        )
    if task is None:
        task = max(saved)
    if task not in saved:
        raise ConfigError(
            f"task={task}: expected a task with a checkpoint in {folder}, one of {', '.join(map(str, saved))} (counted from 0). "
            "Try a run with checkpoints=all, which keeps every task."
        )
    state = read_checkpoint(saved[task], "Try the checkpoint of another task, or train the run again.")
    if content_hash(cfg) != content["content_hash"] or content["config_hash"] != state["config_hash"]:
        raise ConfigError(
            f"{folder / FILE}: expected configuration {state['config_hash']}, with which {saved[task]} was written, but "
            "the file was changed. Try the original file."
        )
    cfg.init_from = None  # the weights come from the checkpoint
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # building a net draws initial weights
            sequence, learner, strategy = build(cfg)
            check_same_data(state.get("fingerprint"), sequence.fingerprint, folder)
            strategy.attach(learner, sequence)
            restore(state, learner, strategy)
    except ConfigError:
        raise
    except Exception as error:
        reason = user_message(error) or str(error).splitlines()[0].strip() or type(error).__name__
        raise ConfigError(
            f"{folder} cannot be rebuilt ({reason}), because the code has changed since the run. Try the package versions in its "
            "metrics.json."
        ) from error
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    learner.eval()
    return LoadedRun(folder, task, cfg, sequence, learner, strategy)
