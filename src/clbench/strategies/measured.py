"""ImportanceStrategy: a quadratic strategy whose importance is measured on examples, by default those of the last task."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import wraps
from typing import Any, Unpack

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from clbench.data import TaskSequence
from clbench.errors import StrategyError, expected
from clbench.importance import default_outputs, preserve_state
from clbench.importance.batching import count, subsample, take
from clbench.importance.outputs import Outputs
from clbench.learner import Learner, learner_outputs
from clbench.params import Params, named_parameters
from clbench.strategies.argument_checks import Strength, check_choice, check_integer_or_none
from clbench.strategies.examples import (
    PARTS,
    Data,
    Stream,
    are_equal,
    batches_of,
    examples_of,
    examples_of_process,
    in_fixed_order,
    in_precision_of,
    number_of,
    transferred,
)
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy
from clbench.strategies.segment import Every, Segment

MANY_COLUMNS = 99
"""Number of backward passes per example from which a warning names the cost."""


class MeasurementOptions(QuadraticOptions, total=False):
    """Options of every measured importance except ``data``, explained at ``ImportanceStrategy``."""

    samples: int | None
    outputs: Outputs | None
    seed: int
    chunk: int | None
    every: Every


class ImportanceOptions(MeasurementOptions, total=False):
    """Options of ``ImportanceStrategy`` that a subclass passes on, without ``lam``."""

    data: Data


class ImportanceStrategy(QuadraticStrategy):
    """Base of EWC, Online EWC and MAS. A subclass defines ``measure``.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        samples: Number of examples to measure on, drawn without replacement. None uses all. Of a stream (an IterableDataset, or a
            loader with an ``__iter__`` of its own) these are the first ones.
        outputs: ``outputs(module, batch)`` -> (outputs (N, ...), targets), or outputs, targets and a mask, see
            ``clbench.importance.fisher``. Needed if the inputs, targets or outputs of the module can be read in several ways.
        seed: Random seed of the examples.
        data: The examples to measure on when a task has ended. ``train`` uses the examples that the
            training loader selects, after the transfer hooks of the module with ``trainer.training`` False. With a
            TaskSequence, ``validation`` and ``test`` use its other examples. Accuracies are then those of a learner that has
            seen the test images, though not their labels (see ``needs_labels``). Other values are batches, used after every
            task, and a function ``data(trainer)`` that returns batches.
        chunk: Largest number of examples per forward pass of the measurement. None uses as many as fit in memory.
        every: When to consolidate in a stream without task boundaries: after this number of optimiser steps, or at each
            ``plateau`` of the loss, see ``clbench.strategies.plateau.Plateau``. The importance is measured on the batches of the
            stream since the last consolidation, see ``Segment``, on at most ``samples`` of their examples. A segment is merged
            like a task, and the end of a fit consolidates nothing. None consolidates at the end of each fit.
        options: ``include`` and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` is negative or not finite, ``samples`` or ``chunk`` is below 1, ``data`` is unknown,
            ``data="test"`` is combined with an importance that reads labels, or ``every`` is combined with ``data`` or
            ``consolidate_at``. When training starts, the module cannot be measured, or ``every`` is set and there are several
            processes.

    Example:
        >>> class ParameterNorm(ImportanceStrategy):
        ...     needs_labels = False
        ...     def measure(self, module, batches, outputs, samples):
        ...         return {name: p.detach().abs() for name, p in module.named_parameters()}
        >>> strategy = ParameterNorm(lam=10.0, data="validation")
        >>> strategy.measure(nn.Linear(3, 2), [], default_outputs, None)["weight"].shape
        torch.Size([2, 3])
    """

    shares_first_task: bool | tuple[str, ...] = True  # measuring two examples before training has no side effect
    needs_labels = True
    one_process = False
    per_process = False  # with every there is one process

    def __init__(
        self,
        lam: Strength,
        *,
        samples: int | None = None,
        outputs: Outputs | None = None,
        seed: int = 0,
        data: Data = "train",
        chunk: int | None = None,
        every: Every = None,
        **options: Unpack[QuadraticOptions],
    ) -> None:
        super().__init__(lam, **options)
        self.samples = check_integer_or_none("samples", samples)
        self.chunk = check_integer_or_none("chunk", chunk)
        if isinstance(data, list | tuple) and not data:
            raise StrategyError(expected("data", data, f"one of {', '.join(PARTS)}, or batches", "Try data=train."))
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
        self._warned_of_cost = False
        self._segment = None if every is None else Segment(every)
        if self._segment is not None:
            self.shares_first_task = False  # it has a penalty
            self._check_stream()

    def _check_stream(self) -> None:
        """Raise ConfigError if another option needs the end of a task."""
        if isinstance(self.lam, tuple):
            raise StrategyError(
                f"{self._segment} consolidates inside tasks: expected a number for lam, got {list(self.lam)}"
            )
        for option, value, default in (("data", self.data, "train"), ("consolidate_at", self.consolidate_at, "fit")):
            if not isinstance(value, str) or value != default:
                raise StrategyError(
                    f"{self._segment} measures on the batches of the stream, inside a fit: expected {option}={default}, got "
                    f"another value. Leave out {option} or every"
                )

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        if self._segment is not None:
            self._segment.reset()

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        """Return the mean importance over ``samples`` examples of ``batches`` (all if None)."""
        raise TypeError(f"{type(self).__name__} does not define measure(module, batches, outputs, samples)")

    def outputs_of(self, module: nn.Module) -> Outputs:
        """Return the function that computes the outputs and targets of a batch with ``module``."""
        return in_precision_of(module, self.outputs or self.default_outputs(module))

    def default_outputs(self, module: nn.Module) -> Outputs:
        """Return the function used without ``outputs``."""
        return learner_outputs if isinstance(module, Learner) else default_outputs

    def columns(self, outputs: int) -> int:
        """Return the number of backward passes per example that ``measure`` takes for that number of outputs."""
        return 1

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._segment is not None and trainer.world_size > 1:
            raise StrategyError(
                f"{self._segment}: expected one process, because each would have another stream, got {trainer.world_size}. Use "
                "trainer.devices=1, or every=None"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on two examples, so that a module that cannot be measured is reported before training."""
        if any(is_lazy(p) for p in pl_module.parameters()) and not callable(self.data):
            self._initialise_lazy_layers(trainer, pl_module)
        super().on_train_start(trainer, pl_module)
        if self._segment is not None:
            self._segment.begin(trainer, pl_module)
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
        wanted = self.samples or trainer.world_size
        if wanted > available:
            what = PARTS[self.data] if isinstance(self.data, str) else "given"
            option = f"samples={wanted}" if self.samples else f"{wanted} processes"
            raise StrategyError(
                f"{option}: expected at most {available}, the number of {what} examples. Try {available}"
            )
        with preserve_state(pl_module):
            first = self._read_first(pl_module, batches)
            if self.data == "train" and self.penalty is None and not isinstance(pl_module, Learner):
                self._warn_of_random_examples(first, self._read_first(pl_module, batches))
        self.check_module(pl_module, first)

    def check_module(self, module: nn.Module, batch: Any) -> None:
        """Measure on two examples of ``batch``, and forget the result.

        Raises:
            ConfigError: The importance of this module cannot be measured.
        """
        outputs, width = self.outputs_of(module), 0

        @wraps(outputs)
        def observed(module: nn.Module, batch: Any) -> tuple[Any, ...]:
            nonlocal width
            found = outputs(module, batch)
            width = found[0].shape[1] if isinstance(found[0], Tensor) and found[0].dim() == 2 else 0
            return found

        try:
            self.measure(module, [take(batch, slice(0, 2))], observed, None)
        except ValueError as error:
            reason = str(error).replace("labels=", "fisher=")  # the option of a strategy
            raise StrategyError(f"{type(self).__name__} cannot measure importance on this module: {reason}") from error
        self._warn_of_cost(width)

    def _initialise_lazy_layers(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Run one batch, because the parameters of lazy layers (``nn.LazyLinear``) have no shape before."""
        modes = {part: part.training for part in module.modules()}
        with torch.no_grad(), torch.random.fork_rng():
            module.eval()
            self.outputs_of(module)(
                module, self._read_first(module, batches_of(self.data, trainer, self.seed, self.samples))
            )
        for part, training in modes.items():
            part.training = training

    def _read_first(self, module: L.LightningModule, batches: Iterable[Any]) -> Any:
        return next(iter(self._as_trained(module, [next(iter(batches))])))

    def _as_trained(self, module: nn.Module, batches: Iterable[Any]) -> Iterable[Any]:
        """Return the batches as the module gets them in training. Those of a Learner are so already."""
        return batches if isinstance(module, Learner) else transferred(module, batches)

    def _warn_of_random_examples(self, first: Any, again: Any) -> None:
        if not are_equal(first, again):
            rank_zero_warn(
                "two readings of the first batch differ, so the data set or a transfer hook draws its examples at random "
                "(augmentation?). The importance is then measured on one draw of each. Pass the examples without augmentation as "
                "data=LOADER, and augment in hooks only if self.trainer.training"
            )

    def _warn_of_cost(self, width: int) -> None:
        if (columns := self.columns(width)) < MANY_COLUMNS or self._warned_of_cost:
            return
        self._warned_of_cost = True
        rank_zero_warn(
            f"measuring takes {columns} backward passes per example, one for each of {width} outputs but the last. "
            "Use fisher='sample', which takes label_samples passes (1), or measure fewer examples with samples="
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._segment is not None and self._segment.add(trainer, batch, outputs):
            self._consolidate_segment(pl_module, self._segment.end())

    def _consolidate_segment(self, module: nn.Module, batches: list[Any]) -> None:
        """Merge the importance of ``batches`` at the current weights into the penalty, inside a fit."""
        is_first, samples = self.penalty is None, self.samples

        def importance() -> Params:
            self.examples = min(sum(map(count, batches)), samples or sys.maxsize)
            return self.measure(module, batches, self.outputs_of(module), None if samples is None else self.examples)

        self._consolidate(module, importance)
        self._pending, self._versions_at_anchor = True, {}
        if is_first:
            self._start_watching(named_parameters(module), self._selected_names(module))

    def end_task(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._segment is None:
            super().end_task(trainer, pl_module)
        else:
            self._pending, self._loaded_pending = False, None

    def state_dict(self) -> dict[str, Any]:
        segment = {} if self._segment is None else {"segment": self._segment.state_dict()}
        return {**super().state_dict(), **segment}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self._segment is not None and "segment" in state_dict:
            self._segment.load_state_dict(state_dict["segment"])

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        batches = batches_of(self.data, trainer, self.seed, self.samples)
        if trainer.world_size == 1:
            return self._measure(pl_module, batches)
        used = self._as_trained(pl_module, batches)
        if not isinstance(batches, Stream):  # of which every process has its own part
            used = examples_of_process(
                subsample(used, self.samples, self.seed), trainer.global_rank, trainer.world_size
            )
        self.examples = 0
        importance = self.measure(pl_module, self._counted(used), self.outputs_of(pl_module), None)
        return self.mean_over_processes(trainer, importance)

    def importance_on(self, module: nn.Module, batches: Iterable[Any] | None) -> Params:
        if self._segment is not None:
            raise StrategyError(
                f"{self._segment}: expected None, because consolidate() measures when it is called. Leave out every"
            )
        if batches is None:
            raise StrategyError(
                "consolidate() needs the examples to measure on. Pass a loader: consolidate(module, loader)"
            )
        return self._measure(module, in_fixed_order(batches, self.seed, self.samples))

    def _measure(self, module: nn.Module, batches: Iterable[Any]) -> Params:
        """Return the importance on ``batches``, in one process."""
        self.examples = 0
        samples = None if isinstance(batches, Stream) else self.samples  # a stream ends at ``samples``
        used = self._counted(self._as_trained(module, batches))
        importance = self.measure(module, used, self.outputs_of(module), samples)
        self.examples = samples or self.examples
        if self.samples is not None and self.examples < self.samples:
            rank_zero_warn(f"samples={self.samples}: the stream had only {self.examples} examples, and all are used")
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
