"""Build the tasks, the learner and the strategy that a configuration describes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from clbench.config.arguments import target_of
from clbench.config.hashing import first_task_hash
from clbench.config.keys import OPTIONS_OF_EVERY
from clbench.config.messages import is_out_of_memory
from clbench.config.values import check_annotations
from clbench.data import TaskSequence
from clbench.data.scenario import Scenario
from clbench.data.targets import LABEL
from clbench.errors import ConfigError
from clbench.experiment.checks import (
    REJECTED,
    check_augmentation,
    check_limits,
    check_lora,
    check_optimizer,
    check_small_batches,
)
from clbench.learner import Learner
from clbench.nets import Net, add_lora, features_on, freeze, init_from, initialize
from clbench.seeding import derive, reseed
from clbench.strategies import Strategy
from clbench.training.loggers import LoggerContext


def build(cfg: DictConfig) -> tuple[TaskSequence, Learner, Strategy]:
    """Return the tasks, the learner and the strategy that ``cfg`` describes. ``cfg.seed`` determines the weights of the net.

    Raises:
        ConfigError: A value is not allowed, the net does not fit the data, or ``init_from``, ``net.freeze`` or ``net.lora`` does
            not fit the net.
    """
    strategy: Strategy = construct(cfg, "strategy", Strategy)
    check_annotations(cfg, ["strategy"])
    scenario: Scenario = construct(cfg, "scenario", Scenario)
    with construction_errors(cfg, "data"):
        make_sequence = instantiate(cfg.data, _partial_=True, _convert_="all")
        sequence: TaskSequence = make_sequence(scenario=scenario, batch_size=cfg.batch_size, loss=cfg.loss)
    check_kind(cfg, "data", sequence, TaskSequence)
    check_augmentation(sequence)
    reseed(derive(cfg.seed, "init"))
    net = build_net(cfg, sequence)
    check_small_batches(net, strategy, sequence, cfg)
    check_limits(cfg, strategy, sequence)
    learner = Learner(
        net,
        construct(cfg, "optimizer.make", Callable),
        cfg.optimizer.reset,
        cfg.bn,
        None if cfg.scheduler.make is None else construct(cfg, "scheduler.make", Callable),
        cfg.scheduler.interval,
        cfg.compile,
        cfg.loss,
        cfg.scheduler.get("length"),
    )
    check_optimizer(cfg, net)
    learner.fresh_net = partial(build_net, cfg, sequence)
    return sequence, learner, strategy


def build_net(cfg: DictConfig, sequence: TaskSequence) -> Net:
    """Return the net that ``cfg`` describes, with initial weights drawn from the global random generators."""
    body, features = build_body(cfg, sequence.inputs(2), sequence.positions)
    if (path := cfg.get("init_from")) is not None:
        init_from(body, path)
    freeze(body, cfg.net.get("freeze", []))  # a run of an earlier version has no such option
    if (lora := cfg.net.get("lora")) is not None:
        check_lora(lora)
        body = add_lora(body, **lora)
    head = sequence.scenario.build_head(features, outputs_of(sequence, cfg.loss))
    if str(cfg.net._target_).startswith("clbench."):  # in a net of the user, init may be another argument
        initialize(head, cfg.net.get("init", "torch"))
    return channels_last(Net(body, head))


def build_body(cfg: DictConfig, inputs: Tensor, positions: Sequence[int] = ()) -> tuple[nn.Module, int]:
    """Return the body that ``cfg.net`` describes, and its number of features.

    Args:
        cfg: The configuration of the run.
        inputs: Two inputs (2, ...).
        positions: Shape of the positions that have a label each, see ``features_on``.

    Raises:
        ConfigError: It cannot be built, is not a module, or has parameters without values.
    """
    shape = tuple(inputs.shape[1:])
    with construction_errors(cfg, "net"):
        make_body = instantiate(without_common_options(cfg.net), _convert_="all")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # refused below, in one line
            body = make_body(shape)
        check_kind(cfg, "net", body, nn.Module)
        features = features_on(body, inputs, positions)
    except REJECTED as error:
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        remedy = "Try other options of the net, another net or other data."
        if not inputs.is_floating_point():
            tokens = f"The inputs are tokens from 0 to {inputs.max()} in {inputs.shape[1]} positions"
            remedy = f"{tokens}. Try net=gpt_small, or a larger vocabulary or more positions of the net. For a table, use floats."
            if not positions:  # gpt_small has a vector per token
                remedy = f"{tokens}, with one target per example. Try net=custom with a net of your own. For a table, use floats."
        if not takes_shape(target_of(cfg.net)):
            remedy = (
                "It is called with the shape of an input. If it takes no shape, try net=module "
                f"net.module._target_={cfg.net._target_}."
            )
        raise ConfigError(
            f"net={cfg.net._target_} cannot be built for inputs of shape {tuple(shape)} ({first_line(error)}). {remedy}"
        ) from error
    empty = next((name for name, weights in body.named_parameters() if weights.numel() == 0), None)
    if empty is not None or features == 0:
        what = f"{empty} has no values" if empty is not None else "it computes no features"
        raise ConfigError(
            f"net={cfg.net._target_}: expected layers of at least one unit, but {what}. Try larger widths."
        )
    return body, features


def without_common_options(net: DictConfig) -> DictConfig:
    """Return a copy of ``cfg.net`` with the arguments of its class or function only."""
    found = net.copy()
    OmegaConf.set_readonly(found, False)
    with open_dict(found):
        for name in OPTIONS_OF_EVERY["net"]:
            found.pop(name, None)
    return found


def takes_shape(target: Callable[..., Any] | None) -> bool:
    """Return whether a class or function has an argument ``shape``; True if that cannot be read."""
    try:
        return target is None or "shape" in inspect.signature(target).parameters
    except ValueError:  # builtins have no signature
        return True


def construct(cfg: DictConfig, key: str, kind: Any) -> Any:
    """Return the object that ``cfg`` describes under the dotted ``key``.

    Raises:
        ConfigError: It cannot be constructed, or it is not of the type ``kind``.
    """
    with construction_errors(cfg, key):
        found = instantiate(OmegaConf.select(cfg, key), _convert_="all")
    check_kind(cfg, key, found, kind)
    return found


def check_kind(cfg: DictConfig, key: str, found: Any, kind: Any) -> None:
    """Raise ConfigError if ``found``, which ``cfg`` describes under the dotted ``key``, is not of the type ``kind``."""
    if not isinstance(found, kind):
        target = OmegaConf.select(cfg, key)._target_
        name = "a function, made by _partial_: true" if kind is Callable else f"a {kind.__module__}.{kind.__name__}"
        raise ConfigError(
            f"{key}._target_={target}: expected {name}, got {type(found).__module__}.{type(found).__name__}. Try another class."
        )


@contextmanager
def construction_errors(cfg: DictConfig, key: str, *others: type[Exception]) -> Iterator[None]:
    """Convert the errors of a constructor that rejects its arguments to ConfigError, while the object at ``key`` is built.

    These are ``REJECTED`` and the types ``others``. A ConfigError is unchanged, and so is the error of a class that cannot be
    imported.
    """
    kinds: tuple[type[Exception], ...] = (*REJECTED, *others)
    caught: tuple[type[Exception], ...] = (*kinds, InstantiationException)
    try:
        yield
    except caught as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if cause is None or isinstance(cause, ConfigError) or not isinstance(cause, kinds):
            raise
        if is_out_of_memory(cause) or str(error).startswith("Error locating target"):
            raise
        target = OmegaConf.select(cfg, key)._target_
        raise ConfigError(
            f"{key}={target} could not be constructed ({first_line(cause)}). Try other values of {key}.*"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of the text of an error, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def build_trainer(cfg: DictConfig, callbacks: list[Callback], length: dict[str, Any]) -> Trainer:
    """Return a new Trainer for a task.

    Args:
        cfg: The configuration of the run.
        callbacks: Callbacks of clbench. They follow the callbacks of the user (``+trainer.callbacks=[...]``).
        length: Training length, as returned by ``budget``, and further arguments that the user cannot change.

    Raises:
        ConfigError: Lightning's Trainer rejects an option or its value.
    """
    with construction_errors(cfg, "trainer", MisconfigurationException, ImportError):
        make = instantiate(cfg.trainer, _partial_=True, _convert_="all")
        added = make.keywords.get("callbacks") or []
        added = [added] if isinstance(added, Callback) else list(added)
        if wrong := [callback for callback in added if not isinstance(callback, Callback)]:
            raise ConfigError(
                f"trainer.callbacks: expected callbacks of Lightning, got {wrong[0]!r}. Try '+trainer.callbacks=[{{_target_: "
                "my_module.MyCallback}]'."
            )
        loggers = make.keywords.get("logger") or []
        loggers = loggers if isinstance(loggers, list) else [loggers]
        if wrong := [logger for logger in loggers if not isinstance(logger, Logger | bool)]:
            raise ConfigError(f"trainer.logger: expected a logger of Lightning, got {wrong[0]!r}. Try logger=csv.")
        trainer: Trainer = make(callbacks=[*added, *callbacks], **length)
    check_kind(cfg, "trainer", trainer, Trainer)
    return trainer


def build_logger(cfg: DictConfig, name: str, context: LoggerContext) -> Logger:
    """Return the logger that ``cfg.logger`` describes under ``name``.

    Raises:
        ConfigError: It rejects its options, or it is not a logger of Lightning.
    """
    key = f"logger.{name}"
    with construction_errors(cfg, key):
        logger: Logger = instantiate(cfg.logger[name])(context)
    check_kind(cfg, key, logger, Logger)
    return logger


def shared_first_task_key(cfg: DictConfig, strategy: Strategy, fingerprint: Mapping[str, str]) -> str | None:
    """Return the hash of everything that affects the first task of a run until its consolidation.

    This includes the contents of the data and the versions of clbench and torch.

    Runs of a sweep with the same key can share the training of their first task.

    Args:
        cfg: The configuration of the run.
        strategy: The strategy that ``cfg.strategy`` describes.
        fingerprint: Fingerprints of the data, see ``TaskSequence``. Empty if the data were not read, for an estimate.

    Returns:
        16 hex digits. None if sharing is off, or if the length of the first task is not known in advance (``patience``).
    """
    if not cfg.share_first_task or cfg.patience is not None:
        return None
    options: Any = OmegaConf.to_container(cfg.strategy, resolve=True)
    environment = {"data": dict(fingerprint), **{package: version(package) for package in ("clbench", "torch")}}
    return first_task_hash(cfg, strategy.first_task_options(options), environment)


def outputs_of(sequence: TaskSequence, loss: str) -> list[int]:
    """Return the number of outputs of each task, for one label with the binary cross-entropy one instead of two classes.

    Raises:
        ConfigError: A single logit cannot separate the classes of the tasks.
    """
    if loss != "binary_cross_entropy" or sequence.kind != LABEL:
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
