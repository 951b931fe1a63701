"""build: the composed configuration -> tasks, learner and strategy."""

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
from clbench.experiment.checks import check_optimizer, check_small_batches
from clbench.learner import Learner
from clbench.nets import Net, features_of, init_from
from clbench.seeding import derive, reseed
from clbench.strategies import Strategy


def build(cfg: DictConfig) -> tuple[TaskSequence, Learner, Strategy]:
    """The tasks, the learner and the strategy that ``cfg`` describes; the net's weights follow from ``cfg.seed``.

    Raises:
        ConfigError: a value that cannot be; a net whose input does not fit the data; ``init_from`` does not fit the net.
    """
    if "_target_" not in cfg.strategy:
        raise ConfigError(
            f"strategy has {', '.join(map(str, cfg.strategy)) or 'nothing'}, no _target_: begin its yaml with the line "
            "'# @package _global_', with which its keys (lam, strategy) stand at the top level"
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
            f"({str(error).splitlines()[0]}): change its options, or choose another net or other data"
        ) from error
    if (path := cfg.get("init_from")) is not None:
        init_from(body, path)
    net = channels_last(Net(body, scenario.build_head(features, outputs_of(sequence, cfg.loss))))
    check_small_batches(net, strategy, sequence, cfg)
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
def construction_errors(cfg: DictConfig, group: str, *refusals: type[Exception]) -> Iterator[None]:
    """Raise ConfigError if what is made of ``cfg[group]`` does not take its options: a TypeError, or one of ``refusals``."""
    kinds: tuple[type[Exception], ...] = (TypeError, *refusals)
    caught: tuple[type[Exception], ...] = (*kinds, InstantiationException)
    try:
        yield
    except caught as error:
        why = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(why, kinds):
            raise
        said = (str(why).strip() or type(why).__name__).splitlines()[0]
        raise ConfigError(
            f"{group}={cfg[group]._target_} cannot be made ({said}): change the options {group}.*"
        ) from error


def build_trainer(cfg: DictConfig, callbacks: list[Callback], length: dict[str, Any]) -> Trainer:
    """The Trainer of a task. Callbacks of the user's (``+trainer.callbacks=[...]``), new ones for each, come before ours.

    Args:
        cfg: of the run.
        callbacks: ours.
        length: how long it trains, as ``budget`` gives it, and whatever else is not the user's to say.

    Raises:
        ConfigError: an option that Lightning's Trainer does not have, or a value that it cannot have.
    """
    with construction_errors(cfg, "trainer", ValueError, MisconfigurationException):
        make = instantiate(cfg.trainer, _partial_=True)
        own = make.keywords.get("callbacks") or []
        trainer: Trainer = make(callbacks=[*([own] if isinstance(own, Callback) else own), *callbacks], **length)
    return trainer


def shared_first_task_key(cfg: DictConfig, strategy: Strategy) -> str | None:
    """Key of what the run can share with others of a sweep, all that decides its first task before the consolidation.

    Args:
        cfg: of the run.
        strategy: that ``cfg.strategy`` describes.

    Returns:
        16 hex digits; None if it is not to share, or the length of its first task is not known in advance (``patience``).
    """
    if not cfg.share_first_task or cfg.patience is not None:
        return None
    options: Any = OmegaConf.to_container(cfg.strategy, resolve=True)
    return first_task_hash(cfg, strategy.first_task_options(options))


def outputs_of(sequence: TaskSequence, loss: str) -> list[int]:
    """Number of outputs of each task: its classes, or one logit for the binary cross-entropy.

    Raises:
        ConfigError: the tasks are not what a single logit can tell apart.
    """
    if loss != "binary_cross_entropy":
        return sequence.sizes
    if sequence.scenario.name == "class" or set(sequence.sizes) != {2}:
        raise ConfigError(
            f"loss=binary_cross_entropy tells two classes apart, but the tasks have {sequence.sizes} classes in a "
            f"{sequence.scenario.name}-incremental run: use scenario=task or domain with two classes a task, or "
            "loss=cross_entropy"
        )
    return [1] * len(sequence)


def channels_last(net: Net) -> Net:
    """Lay the weights of 2d convolutions out as (N, H, W, C), which is faster; features follow. Shapes stay."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)
    return net
