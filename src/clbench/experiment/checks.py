"""Reject configurations that cannot be trained, before training starts."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clbench.config.options import budget
from clbench.data import TaskSequence
from clbench.errors import ConfigError
from clbench.experiment.launch import Launch
from clbench.strategies import Strategy


def check_launch(cfg: DictConfig, launch: Launch) -> None:
    """Raise ConfigError if an option needs another kind of sweep."""
    if cfg.select_lam_on_first_tasks is not None and (launch.sweep is None or not launch.is_grid):
        raise ConfigError(
            f"select_lam_on_first_tasks={cfg.select_lam_on_first_tasks}: expected a grid over lam. Add -m and several values of "
            "lam, or remove this option."
        )
    if cfg.dry_run and not launch.is_grid:
        raise ConfigError("dry_run=true: expected a run or a grid, got a search, whose runs are not known in advance.")


def check_small_batches(net: nn.Module, strategy: Strategy, sequence: TaskSequence, cfg: DictConfig) -> None:
    """Raise ConfigError if a net with BatchNorm would be trained on a batch of one example, because it needs two."""
    kinds = {type(part) for part in net.modules() if isinstance(part, _BatchNorm)}
    size = sequence.batch_size
    if size == 1 and nn.BatchNorm1d in kinds:
        raise ConfigError(
            "batch_size=1: BatchNorm cannot be trained on one example. Try batch_size=2 or a net without BatchNorm."
        )
    if nn.BatchNorm1d in kinds and strategy.smallest_replay_batch(size, len(sequence)) == 1:
        raise ConfigError(
            f"BatchNorm cannot be trained on one example, but {type(strategy).__name__} would replay one example at a time. Try "
            "at least 2 for memory and strategy.replay, or a net without BatchNorm."
        )
    if not kinds or size == 1 or sequence.drop_last:
        return
    for index in range(len(sequence)):
        examples = strategy.training_data(sequence, index).examples
        steps = budget(cfg, index, len(sequence))["max_steps"]
        if examples % size == 1 and (steps < 0 or steps > examples // size):
            raise ConfigError(
                f"batch_size={size}: the last batch of task {index + 1} has one example, on which BatchNorm cannot be trained. "
                "Try data.drop_last=true or another batch_size."
            )


def check_optimizer(cfg: DictConfig, net: nn.Module) -> None:
    """Raise ConfigError if the optimiser or the scheduler cannot be constructed with its options."""
    try:
        optimizer = instantiate(cfg.optimizer.make)(net.parameters())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer={cfg.optimizer.make._target_} could not be constructed ({error}). Try other values of optimizer.make.*"
        ) from error
    if cfg.scheduler.make is None:
        return
    length = cfg.scheduler.get("length")
    try:
        schedule = instantiate(cfg.scheduler.make)(optimizer, **({} if length is None else {length: 10}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the optimiser has not made a step
            schedule.step()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"scheduler={cfg.scheduler.make._target_} could not be constructed or stepped ({error}). Try other values of "
            "scheduler.make.* or another scheduler."
        ) from error


def check_precision(precision: Any) -> None:
    """Raise ConfigError if the weights would not be float32, the type in which importances are measured."""
    if (str(precision).endswith("-true") and precision != "32-true") or str(precision) == "64":
        raise ConfigError(
            f"trainer.precision={precision}: expected a precision with float32 weights. Try 32-true, bf16-mixed or 16-mixed."
        )


def check_device(accelerator: str, devices: Any) -> None:
    """Raise ConfigError if the devices of the Trainer are not available."""
    if accelerator not in ("gpu", "cuda"):
        return
    available = torch.cuda.device_count()
    if available == 0:
        raise ConfigError(f"trainer.accelerator={accelerator}: expected a GPU, found none. Try trainer=cpu.")
    highest = devices if isinstance(devices, int) else max(devices) + 1 if not isinstance(devices, str) else 1
    if highest > available:
        raise ConfigError(f"trainer.devices={devices}: found {available} GPUs. Try fewer devices or trainer=cpu.")


def check_limits(cfg: DictConfig, strategy: Strategy, sequence: TaskSequence) -> None:
    """Raise ConfigError if an option of the Trainer leaves no training batch of a task."""
    for name in ("limit_train_batches", "overfit_batches"):
        limit = cfg.trainer.get(name)
        if not isinstance(limit, int | float) or limit < 0 or (name == "overfit_batches" and limit == 0):
            continue  # it is not set, or the Trainer refuses it
        for index in range(len(sequence)):
            examples, size = strategy.training_data(sequence, index).examples, sequence.batch_size
            batches = examples // size if sequence.drop_last else -(-examples // size)
            if (limit if isinstance(limit, int) else int(limit * batches)) == 0:
                raise ConfigError(
                    f"trainer.{name}={limit}: expected at least one training batch, got none of the {batches} batches of task "
                    f"{index + 1}. Remove the option, or try trainer.{name}=1 for one batch."
                )
