"""Log a run to Lightning loggers: losses over the steps of the whole run, metrics over tasks."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim import Optimizer

from clbench.config.hashing import leaves
from clbench.data import task_of
from clbench.errors import ConfigError, expected
from clbench.metrics.quality import ACCURACY, Quality
from clbench.params import Params, trainable
from clbench.strategies import Strategy
from clbench.strategies.norms import gradient_norms
from clbench.training.evaluation import Evaluation

QUANTILES = {"median": 0.5, "q90": 0.9, "q99": 0.99, "max": 1.0}
"""Name in the logs -> quantile of the importance of the parameters of a layer."""


class Dashboard(Logger):
    """A logger that shows images and tables as well as numbers."""

    @abstractmethod
    def log_task(self, values: dict[str, float], r: Tensor, quality: Quality, importance: Params, step: int) -> None:
        """Log after a task.

        Args:
            values: Numbers as in ``log_metrics``.
            r: R (T, T), with nan for later tasks.
            quality: Quality of the values in R.
            importance: The importance by layer.
            step: Optimiser steps of the run so far.
        """

    @abstractmethod
    def log_results(self, results: Mapping[str, Any]) -> None:
        """Log the contents of metrics.json at the end of a run."""


class LoggingCallback(L.Callback):
    """Callback that logs losses and gradient norms during training and metrics after each task.

    Every ``every`` steps, with the prefix ``train/``: ``loss`` and its parts (``task_loss``, ...), ``penalty``,
    ``penalty_ratio`` (penalty over task loss), the norms before clipping ``loss_gradient`` and ``penalty_gradient``, and
    ``gradient_ratio``.

    After each task, on the axis ``task``: ``acc/task_<j>`` (with the name of another quality in place of
    ``acc``, such as ``bits_per_byte/task_<j>``), the metrics of the tasks so far ``cl/<metric>``, quantiles
    ``importance/<layer>/<quantile>``, ``seconds/`` and ``memory/``. Task numbers start at 1.

    At the end: the numbers of metrics.json.

    Args:
        strategy: Strategy with the penalty.
        evaluation: Callback with R.
        every: Steps between two entries. Logging waits for the device, so 1 slows down training.

    Attributes:
        step: Optimiser steps of the run so far, over all tasks.
    """

    def __init__(self, strategy: Strategy, evaluation: Evaluation, every: int = 50) -> None:
        if every < 1:
            raise ConfigError(expected("log_every", every, "an integer >= 1"))
        self.loggers: list[Logger] = []
        self.strategy = strategy
        self.evaluation = evaluation
        self.every = every
        self.step = 0
        self._seen = 0
        self._norms: tuple[Tensor, Tensor]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self.loggers and (self.step + 1) % self.every == 0:
            with torch.no_grad():
                self._norms = gradient_norms(self.strategy, pl_module, optimizer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.global_step == self._seen:
            return  # gradients are being accumulated
        self.step += trainer.global_step - self._seen
        self._seen = trainer.global_step
        if self.step % self.every or not self.loggers:
            return
        values = {f"train/{name}": part.item() for name, part in outputs.items()}
        values["task"] = task_of(trainer).index + 1
        loss_gradient, penalty_gradient = (n.item() for n in self._norms)
        values["train/loss_gradient"] = loss_gradient
        if (state := self.strategy.penalty_state()) is not None:
            with torch.no_grad():
                penalty = state.value(trainable(pl_module)).item()
            values["train/penalty"] = penalty
            values["train/penalty_ratio"] = ratio(penalty, values["train/task_loss"])
            values["train/penalty_gradient"] = penalty_gradient
            values["train/gradient_ratio"] = ratio(penalty_gradient, loss_gradient)
        for logger in self.loggers:
            logger.log_metrics(values, self.step)

    def after_task(self, task: int, results: Mapping[str, Any]) -> None:
        """Log the metrics after ``task``, from the results so far."""
        if not self.loggers:
            return
        r = self.evaluation.matrix("test")
        so_far = self.evaluation.summarize("test", task + 1)
        prefix = prefix_of(self.evaluation.quality)
        layers = {name: f for name, f in importance_of_layers(self.strategy).items() if f.any()}
        values = {
            **{f"{prefix}/task_{j}": value for j, value in enumerate(r[task, : task + 1].tolist(), start=1)},
            **{f"cl/{name}": value for name, value in so_far.items() if value is not None},
            **{f"importance/{name}/{key}": v for name, f in layers.items() for key, v in quantiles(f).items()},
            **{f"seconds/{key}": seconds for key, seconds in results["seconds"].items()},
            **{f"memory/{key}": value for key, value in peak_memory().items()},
            "task": task + 1,
        }
        for logger in self.loggers:
            if isinstance(logger, Dashboard):
                logger.log_task(values, r, self.evaluation.quality, layers, self.step)
            else:
                logger.log_metrics(values, self.step)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]

    @contextmanager
    def to(self, loggers: Sequence[Logger]) -> Iterator[None]:
        """Log to ``loggers`` and close them on exit, because an open W&B run would receive the entries of the next run."""
        self.loggers = list(loggers)
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            for logger in self.loggers:
                logger.finalize(status)

    def final(self, results: Mapping[str, Any]) -> None:
        """Log the final metrics, under their names in metrics.json."""
        for logger in self.loggers:
            if isinstance(logger, Dashboard):
                logger.log_results(results)
            else:
                logger.log_metrics(dict(leaves(numbers(results))), self.step)


def prefix_of(quality: Quality) -> str:
    """Return the prefix of the values in R.

    >>> prefix_of(ACCURACY)
    'acc'
    """
    return "acc" if quality == ACCURACY else quality.name


def ratio(part: float, whole: float) -> float:
    """Return part / whole, 0 if both are 0."""
    return part / whole if whole else 0.0 if part == 0 else float("inf")


def importance_of_layers(strategy: Strategy) -> Params:
    """Return the importance of ``strategy`` as one flat tensor per layer, by the name of the layer."""
    state = strategy.penalty_state()
    parts: dict[str, list[Tensor]] = {}
    for name, f in state.importance.items() if state is not None else ():
        parts.setdefault(name.rpartition(".")[0], []).append(f.detach().flatten())
    return {layer: torch.cat(flat) for layer, flat in parts.items()}


def quantiles(values: Tensor) -> dict[str, float]:
    """Return the ``QUANTILES`` of values (N,). The quantile q is the smallest value >= at least a fraction q of the values."""
    at = [max(0, -(-int(q * 1000) * len(values) // 1000) - 1) for q in QUANTILES.values()]
    return dict(zip(QUANTILES, values.sort().values[at].tolist(), strict=True))


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process in MiB: ``rss``, except on Windows, and ``cuda``, with a GPU."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak["cuda_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return peak


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the floats in ``results``, nested as in metrics.json."""
    nested = {key: numbers(value) if isinstance(value, dict) else value for key, value in results.items()}
    return {
        key: value for key, value in nested.items() if isinstance(value, float) or (isinstance(value, dict) and value)
    }
