"""Show the progress of a task in the terminal."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clbench.data import task_index

REFRESH = 0.2  # seconds between two updates of the line


class ProgressBar(L.Callback):
    """Callback that shows a progress bar while a task is trained. It never reads the loss, so it does not slow down training."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[epoch]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self.next = 0.0
        self.active = console.is_terminal and not console.quiet

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.active:
            return
        self.progress.start()
        index = task_index(trainer) or 0
        self.line = self.progress.add_task(f"task {index + 1}", total=_steps(trainer), epoch="")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.active and (now := perf_counter()) > self.next:
            self.next = now + REFRESH
            epoch = f"epoch {trainer.current_epoch + 1}"
            done = trainer.fit_loop.total_batch_idx + 1
            self.progress.update(self.line, completed=done, epoch=epoch, refresh=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.active:
            self.progress.update(self.line, description="importance and evaluation", refresh=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.active:
            self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def _steps(trainer: L.Trainer) -> float:
    """Return the number of batches of the task without early stopping."""
    if trainer.max_steps > 0:
        return trainer.max_steps * trainer.accumulate_grad_batches
    return (trainer.max_epochs or 1) * trainer.num_training_batches
