"""Reject configurations that cannot be trained, before training starts."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from clbench.config.keys import shown
from clbench.config.options import budget
from clbench.data import TaskSequence
from clbench.data.batches import left_out
from clbench.errors import ConfigError
from clbench.experiment.launch import Launch
from clbench.nets import features_on
from clbench.strategies import Strategy

REJECTED = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, RuntimeError)
"""Errors with which optimisers and schedulers reject their options."""


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


def check_lora(lora: Any) -> None:
    """Raise ConfigError if the value of ``net.lora`` is not a mapping with ``rank`` and ``targets``, and maybe ``alpha``."""
    if not isinstance(lora, DictConfig) or not {"rank", "targets"} <= set(lora) <= {"rank", "targets", "alpha"}:
        raise ConfigError(
            f"{shown('net.lora', lora)}: expected rank, targets and optionally alpha. Try "
            "'net.lora={rank:8,targets:[PATTERN]}'."
        )
    if not lora.targets:
        raise ConfigError("net.lora.targets=[]: expected at least one pattern for names of linear layers.")


def classifier_in_body(net: nn.Module, sequence: TaskSequence, cfg: DictConfig) -> str | None:
    """Return a warning if the body of ``net=module`` or ``net=custom`` seems to end in a classifier; None if it does not.

    The head of clbench then classifies the outputs of another classifier. The sign is a last linear layer whose outputs are
    the features and are as many as the classes of a task or of all tasks.
    """
    body, is_module = net.get_submodule("body"), cfg.net._target_ == "clbench.nets.module_body"
    if str(cfg.net._target_).startswith("clbench.") and not is_module:
        return None
    linear = {name: part for name, part in body.named_modules() if isinstance(part, nn.Linear)}
    name = next(reversed(linear), "")  # "" is also the name of a body that is a linear layer, which cannot be removed
    features = features_on(body, sequence.inputs(2), sequence.positions)
    if not name or linear[name].out_features != features or features not in {*sequence.sizes, sum(sequence.sizes)}:
        return None
    if is_module and cfg.net.flatten:
        name = name.removeprefix("0.")
    remedy = f"try {shown('net.drop_layer', name)}" if is_module else "return its inputs instead"
    return (
        f"the last layer {name} of the net has {features} outputs, as many as there are classes, and clbench adds another output "
        f"layer. If {name} is a classifier, {remedy}."
    )


def check_optimizer(cfg: DictConfig, net: nn.Module) -> None:
    """Raise ConfigError if the optimiser or the scheduler cannot be constructed, or fails at a step on copies of the weights."""
    on_gpu = cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    weights = [nn.Parameter(p.detach().to("cuda" if on_gpu else "cpu", copy=True)) for p in net.parameters()]
    for copy in weights:
        copy.grad = torch.zeros_like(copy)
    try:
        optimizer = instantiate(cfg.optimizer.make, _convert_="all")(weights)
        check_made("optimizer", cfg.optimizer.make, optimizer, Optimizer)
        optimizer.step(lambda: torch.zeros(()))
    except REJECTED as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"optimizer={cfg.optimizer.make._target_} could not be constructed or stepped ({error}). Try other values of "
            "optimizer.make.* or another optimizer."
        ) from error
    if cfg.scheduler.make is None:
        return
    length = cfg.scheduler.get("length")
    try:
        schedule = instantiate(cfg.scheduler.make, _convert_="all")(
            optimizer, **({} if length is None else {length: 10})
        )
        check_made("scheduler", cfg.scheduler.make, schedule, LRScheduler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the optimiser has made no step since
            schedule.step()
    except REJECTED as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"scheduler={cfg.scheduler.make._target_} could not be constructed or stepped ({error}). Try other values of "
            "scheduler.make.* or another scheduler."
        ) from error


def check_augmentation(sequence: TaskSequence) -> None:
    """Raise ConfigError if the augmentation fails on images of the shape of the data, or changes their shape."""
    if sequence.augment is None:
        return
    images = torch.zeros(2, *sequence.shape, dtype=torch.uint8)  # (N, C, H, W)
    try:
        shape = tuple(sequence.augment(images, 0).shape[1:])
    except REJECTED as error:
        raise ConfigError(
            f"data.augment fails on images of shape {sequence.shape} ({error}). Try other options of it."
        ) from error
    if shape != tuple(sequence.shape):
        raise ConfigError(
            f"data.augment: expected images of shape {sequence.shape} as given, got {shape}. Try other options of it."
        )


def check_made(group: str, make: DictConfig, found: Any, kind: type) -> None:
    """Raise ConfigError if ``found``, which ``make`` of the group describes, is not of the type ``kind``."""
    if not isinstance(found, kind):
        raise ConfigError(
            f"{group}.make._target_={make._target_}: expected a {kind.__module__}.{kind.__name__}, got "
            f"{type(found).__module__}.{type(found).__name__}. Try another class."
        )


def check_precision(precision: Any) -> None:
    """Raise ConfigError if the weights would not be float32, the type in which importances are measured."""
    if precision is not None and str(precision).removesuffix("-mixed") not in ("32", "32-true", "16", "bf16"):
        raise ConfigError(
            f"trainer.precision={precision}: expected a precision with float32 weights. Try 32-true, bf16-mixed or 16-mixed."
        )


def check_device(accelerator: Any) -> None:
    """Raise ConfigError if the Trainer needs a GPU and there is none."""
    if accelerator in ("gpu", "cuda") and torch.cuda.device_count() == 0:
        raise ConfigError(f"trainer.accelerator={accelerator}: expected a GPU, found none. Try trainer=cpu.")


def check_processes(trainer: Trainer, sequence: TaskSequence, distribution: str) -> None:
    """Raise ConfigError if the processes of ``trainer`` cannot share the work.

    Args:
        trainer: A Trainer of the run.
        sequence: The tasks.
        distribution: The option ``trainer.strategy``, which says how processes are started.
    """
    if re.search(r"spawn|fork|notebook", str(distribution)):
        raise ConfigError(
            f"trainer.strategy={distribution}: expected a strategy that starts the command again in each process. Try "
            "trainer=ddp."
        )
    devices, processes = trainer.num_devices, trainer.num_devices * trainer.num_nodes
    if processes == 1:
        return
    if distribution == "auto":
        raise ConfigError(
            f"trainer.devices={devices}, trainer.num_nodes={trainer.num_nodes}: expected one process without trainer=ddp. Try "
            f"trainer=ddp trainer.devices={devices}."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and devices > cores:
        raise ConfigError(
            f"trainer.devices={devices}: expected at most {cores}, the number of cores. Try trainer.devices={cores}."
        )
    if sequence.batch_size % processes:
        raise ConfigError(
            f"batch_size={sequence.batch_size}: expected a multiple of the {processes} processes that share a batch. Try "
            f"batch_size={-(-sequence.batch_size // processes) * processes}."
        )


def examples_left_out(trainer: Trainer, sequence: TaskSequence, strategy: Strategy) -> int:
    """Return the largest number of examples of a task that several processes leave out in each epoch."""
    processes = trainer.num_devices * trainer.num_nodes
    if processes == 1 or sequence.drop_last:
        return 0
    examples = [strategy.training_data(sequence, index).examples for index in range(len(sequence))]
    return max(left_out(number, sequence.batch_size, processes) for number in examples)


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
