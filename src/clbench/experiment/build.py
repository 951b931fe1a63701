"""Build the tasks, the learner and the strategy that a configuration describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from clbench.config.hashing import first_task_hash
from clbench.data import TaskSequence
from clbench.errors import ConfigError
from clbench.experiment.checks import check_limits, check_optimizer, check_small_batches
from clbench.learner import Learner
from clbench.nets import Net, features_of, init_from
from clbench.seeding import derive, reseed
from clbench.strategies import Strategy


def build(cfg: DictConfig) -> tuple[TaskSequence, Learner, Strategy]:
    """Return the tasks, the learner and the strategy that ``cfg`` describes. ``cfg.seed`` determines the weights of the net.

    Raises:
        ConfigError: A value is not allowed, the net does not fit the data, or ``init_from`` does not fit the net.
    """
    if "_target_" not in cfg.strategy:
        raise ConfigError(
            f"strategy: expected a key _target_, got {', '.join(map(str, cfg.strategy)) or 'no keys'}. Try '# @package _global_' "
            "as the first line of its yaml, which places its keys lam and strategy at the top level."
        )
    with construction_errors(cfg, "strategy"):
        strategy = instantiate(cfg.strategy)
    scenario = instantiate(cfg.scenario)
    with construction_errors(cfg, "data"):
        make_sequence = instantiate(cfg.data, _partial_=True, _convert_="all")
        sequence: TaskSequence = make_sequence(scenario=scenario, batch_size=cfg.batch_size)
    reseed(derive(cfg.seed, "init"))
    make_body = instantiate(cfg.net, _convert_="all")
    try:
        body = make_body(sequence.shape)
        features = features_of(body, sequence.shape)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"net={cfg.net._target_} cannot be built for inputs of shape {tuple(sequence.shape)} "
            f"({str(error).splitlines()[0]}). Try other options of the net, another net or other data."
        ) from error
    if (path := cfg.get("init_from")) is not None:
        init_from(body, path)
    net = channels_last(Net(body, scenario.build_head(features, outputs_of(sequence, cfg.loss))))
    check_small_batches(net, strategy, sequence, cfg)
    check_limits(cfg, strategy, sequence)
    learner = Learner(
        net,
        instantiate(cfg.optimizer.make),
        cfg.optimizer.reset,
        cfg.bn,
        instantiate(cfg.scheduler.make),
        cfg.scheduler.interval,
        cfg.compile,
        cfg.loss,
        cfg.scheduler.get("length"),
    )
    check_optimizer(cfg, net)
    return sequence, learner, strategy


@contextmanager
def construction_errors(cfg: DictConfig, group: str, *others: type[Exception]) -> Iterator[None]:
    """Convert a TypeError, or an error of the types ``others``, to ConfigError while ``cfg[group]`` is instantiated."""
    kinds: tuple[type[Exception], ...] = (TypeError, *others)
    caught: tuple[type[Exception], ...] = (*kinds, InstantiationException)
    try:
        yield
    except caught as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, kinds):
            raise
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ConfigError(
            f"{group}={cfg[group]._target_} could not be constructed ({reason}). Try other values of {group}.*"
        ) from error


def build_trainer(cfg: DictConfig, callbacks: list[Callback], length: dict[str, Any]) -> Trainer:
    """Return a new Trainer for a task.

    Args:
        cfg: The configuration of the run.
        callbacks: Callbacks of clbench. They follow the callbacks of the user (``+trainer.callbacks=[...]``).
        length: Training length, as returned by ``budget``, and further arguments that the user cannot change.

    Raises:
        ConfigError: Lightning's Trainer rejects an option or its value.
    """
    with construction_errors(cfg, "trainer", ValueError, MisconfigurationException):
        make = instantiate(cfg.trainer, _partial_=True)
        added = make.keywords.get("callbacks") or []
        trainer: Trainer = make(callbacks=[*([added] if isinstance(added, Callback) else added), *callbacks], **length)
    return trainer


def shared_first_task_key(cfg: DictConfig, strategy: Strategy) -> str | None:
    """Return the hash of everything that affects the first task of a run until its consolidation.

    Runs of a sweep with the same key can share the training of their first task.

    Args:
        cfg: The configuration of the run.
        strategy: The strategy that ``cfg.strategy`` describes.

    Returns:
        16 hex digits. None if sharing is off, or if the length of the first task is not known in advance (``patience``).
    """
    if not cfg.share_first_task or cfg.patience is not None:
        return None
    options: Any = OmegaConf.to_container(cfg.strategy, resolve=True)
    return first_task_hash(cfg, strategy.first_task_options(options))


def outputs_of(sequence: TaskSequence, loss: str) -> list[int]:
    """Return the number of outputs of each task: its number of classes, or one for the binary cross-entropy.

    Raises:
        ConfigError: A single logit cannot separate the classes of the tasks.
    """
    if loss != "binary_cross_entropy":
        return sequence.sizes
    if sequence.scenario.name == "class" or set(sequence.sizes) != {2}:
        raise ConfigError(
            f"loss=binary_cross_entropy: expected two classes in every task and scenario=task or domain, got {sequence.sizes} "
            f"classes and scenario={sequence.scenario.name}. Try loss=cross_entropy."
        )
    return [1] * len(sequence)


def channels_last(net: Net) -> Net:
    """Store the weights of 2d convolutions in the memory format (N, H, W, C), which is faster. Shapes do not change."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)
    return net
