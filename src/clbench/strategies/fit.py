"""What a penalty needs of a fit of Lightning: what is refused, its place among the callbacks, checkpoints, processes."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn
from torch.nn.parameter import is_lazy

from clbench.errors import StrategyError

SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)


def refuse_sharded(trainer: L.Trainer) -> None:
    """Refuse strategies of Lightning that split parameters over devices.

    Raises:
        ConfigError: the Trainer has one.
    """
    if isinstance(trainer.strategy, SHARDED):
        raise StrategyError(
            f"{type(trainer.strategy).__name__} splits parameters over devices, but a penalty needs them whole. Use 'ddp'"
        )


def refuse_what_misses_the_penalty(trainer: L.Trainer, module: nn.Module) -> None:
    """Refuse optimisers and layers with which the penalty would be wrong or missing.

    Raises:
        ConfigError: The Trainer or the module has one.
    """
    plugin = trainer.precision_plugin
    fused = [o for o in trainer.optimizers if getattr(o, "_step_supports_amp_scaling", False)]
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and fused:
        raise StrategyError(
            f"{type(fused[0]).__name__} is fused under 16-mixed precision, so gradients are still scaled when the penalty "
            "is added. Use fused=False or precision=bf16-mixed"
        )
    if any(group.get("line_search_fn") for optimizer in trainer.optimizers for group in optimizer.param_groups):
        raise StrategyError(
            "line_search_fn compares values of the loss, which do not include the penalty. Use line_search_fn=None, or "
            "another optimizer"
        )
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise StrategyError(f"{name} has sparse gradients, to which a penalty cannot be added. Use sparse=False")
    for name, p in module.named_parameters():
        if is_lazy(p):
            raise StrategyError(f"{name} has no shape yet (a lazy layer). Run one batch through the module before fit")


def place_last(callback: L.Callback, trainer: L.Trainer) -> None:
    """Move the callbacks of others that come after ``callback`` before it, so that it sees the weights which they leave.

    Checkpoints stay behind it, and so do the callbacks of clbench.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    place = callbacks.index(callback)
    behind = callbacks[place + 1 :]
    others = [c for c in behind if not isinstance(c, Checkpoint) and not type(c).__module__.startswith("clbench.")]
    if others:
        stay = [c for c in behind if c not in others]
        trainer.callbacks = [*callbacks[:place], *others, callback, *stay]  # type: ignore[attr-defined]


def save_again(trainer: L.Trainer) -> None:
    """Write the checkpoints of the last step again, which ModelCheckpoint wrote before the task was consolidated."""
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.save_weights_only:
            continue
        if callback._last_global_step_saved == trainer.global_step:
            newest = "" if callback.monitor else callback.best_model_path
            for path in dict.fromkeys((callback._last_checkpoint_saved, callback.last_model_path, newest)):
                if path:
                    trainer.save_checkpoint(path)


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the module to ``device`` inside. Lightning has moved it to the CPU when a fit ends."""
    before = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)


def is_in_child(trainer: L.Trainer) -> bool:
    """Return whether the fit runs in processes that end with it (``ddp_spawn``, ``ddp_fork``, ``ddp_notebook``)."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


RECEIVERS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Strategies of this process by their keys."""


class Returned:
    """The state of a strategy, which the main process loads when it receives it from a child process."""

    def __init__(self, key: str, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.key, self.content = key, buffer.getvalue()

    def __deepcopy__(self, memo: dict[int, Any]) -> Returned:
        return self  # Lightning copies what it sends; only the main process is to receive it

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, bytes]]:
        return receive, (self.key, self.content)


def receive(key: str, content: bytes) -> None:
    """Load the state into the strategy with that key, if this process has it."""
    if (strategy := RECEIVERS.get(key)) is not None:
        strategy.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))


def return_state(trainer: L.Trainer, key: str, state: dict[str, Any]) -> None:
    """Send ``state`` back with the Trainer's own, from the process of rank 0."""
    if trainer.is_global_zero:
        trainer.state.clbench = Returned(key, state)  # type: ignore[attr-defined]
