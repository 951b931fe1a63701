"""Display: what a person sees of a run, in the terminal and, the same text, in train.log."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

REFRESH = 0.2  # seconds between two looks at the progress line
PIPE = 160  # columns of a table that is not printed on a terminal


class Display:
    """Prints the plan, the accuracies after each task and the summary.

    Args:
        log: the text goes to this file too.
        quiet: only the file (the runs of a sweep, and processes other than the first).
    """

    def __init__(self, log: Path, quiet: bool = False) -> None:
        self.terminal = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.log = Console(file=log.open("a"), width=140, highlight=False)

    def plan(self, lines: dict[str, str]) -> None:
        """What will run, a line for each part."""
        grid = Table.grid(padding=(0, 2))
        for label, text in lines.items():
            grid.add_row(Text(label, style="dim"), text)
        self._print(grid)

    def note(self, text: str) -> None:
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """What the reader should do something about."""
        self._print(Text("warning: ", style="bold yellow").append(text, style="none"))

    def after_task(self, index: int, tasks: int, row: list[float], seconds: float) -> None:
        """The accuracies so far, one line."""
        learned = row[: index + 1]
        text = Text(f"task {index + 1}/{tasks}  ", style="bold")
        text.append(" ".join(f"{accuracy:.3f}" for accuracy in learned), style="none")
        text.append(f"  mean {sum(learned) / len(learned):.3f}  {seconds:.1f} s", style="dim")
        self._print(text)

    def summary(self, metrics: dict[str, Any], folder: Path) -> None:
        """The accuracy matrix and what is read from it."""
        matrix = metrics["accuracy_matrix"]
        table = Table(title="test accuracy (row: after training a task, column: on a task)", title_justify="left")
        table.add_column("after")
        for j in range(len(matrix)):
            table.add_column(str(j), justify="right")
        for i, row in enumerate(matrix):
            cells = [Text(f"{a:.3f}", style="bold" if i == j else "dim" if j > i else "") for j, a in enumerate(row)]
            table.add_row(str(i), *cells)
        self._print(table)
        grid = Table.grid(padding=(0, 2))
        for key in ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "forward_transfer"):
            if metrics[key] is not None:
                grid.add_row(Text(key.replace("_", " "), style="dim"), f"{metrics[key]:.4f}")
        if metrics["validation"] is not None:
            value = metrics["validation"]["average_accuracy"]
            grid.add_row(Text("validation average accuracy", style="dim"), f"{value:.4f}")
        seconds = metrics["seconds"]
        parts = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("train", "importance", "evaluation"))
        grid.add_row(Text("seconds", style="dim"), f"{seconds['total']:.1f} ({parts})")
        self._print(grid)
        self._print(Text("results in ", style="dim").append(str(folder), style="none"))

    def progress(self) -> ProgressLine:
        """A callback that draws the progress line."""
        return ProgressLine(self.terminal)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.log.file.close()

    def _print(self, what: Any) -> None:
        self.terminal.print(what)
        self.log.print(what)


class ProgressLine(L.Callback):
    """One line that moves while a task is trained; it looks at the clock, not at the loss, so nothing waits for it."""

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
        index = getattr(trainer.datamodule, "index", 0)
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

    on_exception = teardown


def _steps(trainer: L.Trainer) -> float:
    """Batches that the task will take, if nothing ends it early."""
    if trainer.max_steps > 0:
        return trainer.max_steps * trainer.accumulate_grad_batches
    return (trainer.max_epochs or 1) * trainer.num_training_batches


def console() -> Console:
    """Where tables are printed: as wide as the terminal; wide enough for all their words in a file or a pipe."""
    here = Console(highlight=False)
    return here if here.is_terminal else Console(highlight=False, width=PIPE)


@cache
def say_once(text: str) -> None:
    """On stderr, the first time in this process: what is the same for all runs of a sweep."""
    print(text, file=sys.stderr, flush=True)
