"""Find tasks that were trained on less than their data and their length, because an option of the Trainer limits them."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Timer


def partial_training(trainer: L.Trainer) -> str | None:
    """Return why a finished fit did not use all batches or all steps, None if it did.

    A fit that stops early because of ``patience``, or of a callback of the user other than Lightning's Timer, is whole.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return f"{_steps(trainer.global_step)} (trainer.fast_dev_run={trainer.fast_dev_run})"  # type: ignore[attr-defined]
    loader = trainer.train_dataloader
    used = trainer.num_training_batches
    if loader is not None and used < len(loader):
        option = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"  # type: ignore[attr-defined]
        return f"{used} of {len(loader)} batches per epoch (trainer.{option}={getattr(trainer, option)})"
    planned = trainer.estimated_stepping_batches
    if trainer.global_step < planned and any(_has_expired(callback) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        return f"{trainer.global_step} of {_steps(planned)} (trainer.max_time)"
    return None


def _has_expired(callback: L.Callback) -> bool:
    left = callback.time_remaining() if isinstance(callback, Timer) else None
    return left is not None and left <= 0


def _steps(number: float) -> str:
    return "1 step" if number == 1 else f"{number:g} steps"
