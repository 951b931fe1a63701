"""ImportanceStrategy: a quadratic strategy whose importance is measured on examples, by default those of the last task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from clbench.data import Batches, TaskSequence
from clbench.errors import StrategyError
from clbench.importance import default_outputs, preserve_state
from clbench.importance.batching import count, subsample, take
from clbench.learner import Learner, learner_outputs
from clbench.params import Params
from clbench.strategies.argument_checks import check_choice, check_integer_or_none
from clbench.strategies.examples import (
    PARTS,
    Data,
    are_equal,
    batches_of,
    examples_of,
    examples_of_process,
    number_of,
    transferred,
)
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy

Outputs = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]


class MeasurementOptions(QuadraticOptions, total=False):
    """Options of every measured importance except ``data``, explained at ``ImportanceStrategy``."""

    samples: int | None
    outputs: Outputs | None
    seed: int
    chunk: int | None


class ImportanceOptions(MeasurementOptions, total=False):
    """Options of ``ImportanceStrategy`` that a subclass passes on, without ``lam``."""

    data: Data


class ImportanceStrategy(QuadraticStrategy):
    """Base of EWC, Online EWC and MAS. A subclass defines ``measure``.

    Args:
        lam: Strength of the penalty, >= 0.
        samples: Number of examples to measure on, drawn without replacement. None uses all.
        outputs: ``outputs(module, batch)`` -> (outputs (N, C), targets (N,)). Needed for a module of your own whose batches are
            not ``(x, y)`` or which is not called as ``module(x)``.
        seed: Random seed of the examples.
        data: The examples to measure on when a task has ended. ``train`` uses its training examples, without augmentation. With a
            TaskSequence, ``validation`` and ``test`` use its other examples. Accuracies are then those of a learner that has
            seen the test images, though not their labels (see ``needs_labels``). Other values are batches, used after every
            task, and a function ``data(trainer)`` that returns batches.
        chunk: Largest number of examples per forward pass of the measurement. None uses as many as fit in memory.
        options: ``include`` and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` is negative or not finite, ``samples`` or ``chunk`` is below 1, ``data`` is unknown, or
            ``data="test"`` is combined with an importance that reads labels. When training starts, the module cannot be measured.

    Example:
        >>> class ParameterNorm(ImportanceStrategy):
        ...     needs_labels = False
        ...     def measure(self, module, batches, outputs, samples):
        ...         return {name: p.detach().abs() for name, p in module.named_parameters()}
        >>> strategy = ParameterNorm(lam=10.0, data="validation")
        >>> strategy.measure(nn.Linear(3, 2), [], default_outputs, None)["weight"].shape
        torch.Size([2, 3])
    """

    shares_first_task = True  # measuring two examples before training has no side effect
    needs_labels = True

    def __init__(
        self,
        lam: float,
        *,
        samples: int | None = None,
        outputs: Outputs | None = None,
        seed: int = 0,
        data: Data = "train",
        chunk: int | None = None,
        **options: Unpack[QuadraticOptions],
    ) -> None:
        super().__init__(lam, **options)
        self.samples = check_integer_or_none("samples", samples)
        self.chunk = check_integer_or_none("chunk", chunk)
        if isinstance(data, str):
            check_choice("data", data, list(PARTS))
            if data == "test" and self.needs_labels:
                raise StrategyError(
                    f"data=test: expected train or validation, because the importance of {type(self).__name__} reads labels. "
                    "Try data=train. If a strategy of your own reads no labels, declare needs_labels = False"
                )
        self.outputs = outputs
        self.seed = seed
        self.data = data

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        """Return the mean importance over ``samples`` examples of ``batches`` (all if None)."""
        raise TypeError(f"{type(self).__name__} does not define measure(module, batches, outputs, samples)")

    def outputs_of(self, module: nn.Module) -> Outputs:
        """Return the function that computes the outputs and targets of a batch with ``module``."""
        return self.outputs or (learner_outputs if isinstance(module, Learner) else default_outputs)

    def check(self, sequence: TaskSequence) -> None:
        if not isinstance(self.data, str):
            return
        if self.data == "train":
            fewest = min(task.examples for task in sequence)
        else:
            fewest = min(len(examples_of(task, self.data)) for task in sequence)
        if self.samples is not None and self.samples > fewest:
            raise StrategyError(
                f"samples={self.samples}: expected at most {fewest}, the number of {PARTS[self.data]} examples of the smallest "
                f"task. Try {fewest}, or samples=None for all"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on two examples, so that a module that cannot be measured is reported before training."""
        super().on_train_start(trainer, pl_module)
        if self.samples is not None and self.samples < trainer.world_size:
            raise StrategyError(
                f"samples={self.samples}: expected at least {trainer.world_size}, one per process. Try {trainer.world_size}"
            )
        if callable(self.data) or (isinstance(pl_module, Learner) and self.penalty is not None):
            return
        batches = batches_of(self.data, trainer, self.seed, self.samples)
        available = number_of(batches)
        if available is None:  # an iterable that may be readable only once
            return
        if self.samples is not None and self.samples > available:
            what = PARTS[self.data] if isinstance(self.data, str) else "given"
            raise StrategyError(
                f"samples={self.samples}: expected at most {available}, the number of {what} examples. Try {available}"
            )
        with preserve_state(pl_module):
            first = next(iter(batches))
            if self.data == "train" and self.penalty is None and not isinstance(batches, Batches):
                self._warn_of_random_examples(first, next(iter(batches)))
            first = next(transferred(trainer, [first]))
        try:
            self.measure(pl_module, [take(first, slice(0, 2))], self.outputs_of(pl_module), None)
        except ValueError as error:
            raise StrategyError(f"{type(self).__name__} cannot measure importance on this module: {error}") from error

    def _warn_of_random_examples(self, first: Any, again: Any) -> None:
        if not are_equal(first, again):
            rank_zero_warn(
                "two readings of the first batch differ, so the data set draws its examples at random (augmentation?). "
                "The importance is then measured on one draw of each. Pass the examples without augmentation as data=LOADER"
            )

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        outputs, batches = self.outputs_of(pl_module), batches_of(self.data, trainer, self.seed, self.samples)
        if not isinstance(pl_module, Learner):
            batches = transferred(trainer, batches)
        self.examples = 0
        if trainer.world_size == 1:
            importance = self.measure(pl_module, self._counted(batches), outputs, self.samples)
            self.examples = self.samples or self.examples
            return importance
        used = subsample(batches, self.samples, self.seed)
        mine = examples_of_process(used, trainer.global_rank, trainer.world_size)
        importance = self.measure(pl_module, self._counted(mine), outputs, None)
        return self.mean_over_processes(trainer, importance)

    def importance_on(self, module: nn.Module, batches: Iterable[Any] | None) -> Params:
        if batches is None:
            raise StrategyError(
                "consolidate() needs the examples to measure on. Pass a loader: consolidate(module, loader)"
            )
        trainer = getattr(module, "_trainer", None)
        if trainer is not None and not isinstance(module, Learner):
            batches = transferred(trainer, batches)
        self.examples = 0
        importance = self.measure(module, self._counted(batches), self.outputs_of(module), self.samples)
        self.examples = self.samples or self.examples
        return importance

    def mean_over_processes(self, trainer: L.Trainer, importance: Params) -> Params:
        """Return the mean over the examples of all processes, each process weighted by its number of examples."""
        device = next(iter(importance.values())).device
        total = trainer.strategy.reduce(torch.tensor(self.examples, device=device), reduce_op="sum")
        share = self.examples / total.item()
        self.examples = int(total)
        return {name: trainer.strategy.reduce(f * share, reduce_op="sum") for name, f in importance.items()}

    def _counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self.examples += count(batch)
            yield batch
