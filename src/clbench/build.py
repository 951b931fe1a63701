"""build: the composed configuration -> tasks, learner and strategy."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clbench.config import budget, prefix_key
from clbench.data import TaskSequence
from clbench.errors import ConfigError
from clbench.learner import Learner
from clbench.nets import Net, features_of, init_from
from clbench.seeding import derive
from clbench.sequence import reseed
from clbench.strategies import Strategy
from clbench.strategies.rehearsal import RehearsalStrategy


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
    strategy = instantiate(cfg.strategy)
    scenario = instantiate(cfg.scenario)
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


def shared_key(cfg: DictConfig, strategy: Strategy) -> str | None:
    """Key of what the run can share with others of a sweep, all that decides its first task before the consolidation.

    Args:
        cfg: of the run.
        strategy: that ``cfg.strategy`` describes.

    Returns:
        Eight hex digits; None if it is not to share, or its first task ends nobody knows when (``patience``).
    """
    if not cfg.share or cfg.patience is not None:
        return None
    options: Any = OmegaConf.to_container(cfg.strategy, resolve=True)
    return prefix_key(cfg, strategy.matters_first(options))


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


def check_small_batches(net: nn.Module, strategy: Strategy, sequence: TaskSequence, cfg: DictConfig) -> None:
    """Raise ConfigError if a net with BatchNorm would be trained on a batch of one example: it needs two."""
    kinds = {type(part) for part in net.modules() if isinstance(part, _BatchNorm)}
    size = sequence.batch_size
    if size == 1 and nn.BatchNorm1d in kinds:
        raise ConfigError(
            "batch_size=1: BatchNorm cannot be trained on one example, use at least 2 or a net without it"
        )
    if (
        isinstance(strategy, RehearsalStrategy)
        and nn.BatchNorm1d in kinds
        and strategy.fewest(size, len(sequence)) == 1
    ):
        raise ConfigError(
            f"BatchNorm cannot be trained on one example, but {type(strategy).__name__} would pass old examples through the net "
            "one at a time: use at least 2 for memory and strategy.replay, or a net without BatchNorm"
        )
    if not kinds or size == 1 or sequence.drop_last:
        return
    for index in range(len(sequence)):
        examples = strategy.training_data(sequence, index).examples
        steps = budget(cfg, index, len(sequence))["max_steps"]
        if examples % size == 1 and (steps < 0 or steps > examples // size):
            raise ConfigError(
                f"batch_size={size} leaves a last batch of one example in task {index}, on which BatchNorm cannot be trained: "
                "use data.drop_last=true or another batch_size"
            )


def check_optimizer(cfg: DictConfig, net: nn.Module) -> None:
    """Raise ConfigError if the optimiser, or its schedule, cannot be made with the options it is given."""
    try:
        optimizer = instantiate(cfg.optimizer.make)(net.parameters())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer={cfg.optimizer.make._target_} cannot be made ({error}): change the options optimizer.make.*"
        ) from error
    if cfg.scheduler.make is None:
        return
    length = cfg.scheduler.get("length")
    try:
        schedule = instantiate(cfg.scheduler.make)(optimizer, **({} if length is None else {length: 10}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was trained
            schedule.step()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"scheduler={cfg.scheduler.make._target_} cannot be made, or not followed without more ({error}): change the options "
            "scheduler.make.*, or use another scheduler"
        ) from error


def check_precision(precision: Any) -> None:
    """Raise ConfigError if the weights would be of another type than the data: importances are measured in theirs."""
    if (str(precision).endswith("-true") and precision != "32-true") or str(precision) == "64":
        raise ConfigError(
            f"trainer.precision={precision} has weights that are not float32: use 32-true, bf16-mixed or 16-mixed (weights stay "
            "float32, a step is computed in fewer bits)"
        )


def check_device(accelerator: str, devices: Any) -> None:
    """Raise ConfigError if the trainer's device is not there."""
    if accelerator not in ("gpu", "cuda"):
        return
    there = torch.cuda.device_count()
    if there == 0:
        raise ConfigError(f"trainer.accelerator={accelerator} but no GPU is there: use trainer=cpu")
    highest = devices if isinstance(devices, int) else max(devices) + 1 if not isinstance(devices, str) else 1
    if highest > there:
        raise ConfigError(f"trainer.devices={devices} but there are {there} GPUs: ask for fewer or use trainer=cpu")
