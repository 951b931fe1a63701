"""ImportanceStrategy: a quadratic strategy whose importance is measured on examples of the task just learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset

from clbench.data import Task, TaskSequence
from clbench.errors import ConfigError
from clbench.importance import default_outputs, undisturbed
from clbench.importance.draw import draw
from clbench.learner import Learner, learner_outputs
from clbench.params import Params
from clbench.strategies.quadratic import QuadraticStrategy
from clbench.strategies.selection import Patterns

Outputs = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]


class ImportanceStrategy(QuadraticStrategy):
    """EWC, Online EWC and MAS: each writes ``measure`` only.

    Args:
        lam: strength of the penalty, >= 0.
        samples: number of examples to measure on, drawn without replacement; None = all training examples.
        outputs: ``outputs(module, batch)`` -> (outputs (N, C), targets (N,)), for a module of your own whose batches
            are not ``(x, y)`` or which is not called as ``module(x)``.
        seed: of the examples drawn.
        include, exclude: see ``QuadraticStrategy``.

    Raises:
        ConfigError: ``lam`` negative or not finite; ``samples`` below 1.
    """

    def __init__(
        self,
        lam: float,
        samples: int | None = None,
        outputs: Outputs | None = None,
        seed: int = 0,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> None:
        super().__init__(lam, include, exclude)
        if samples is not None and samples < 1:
            raise ConfigError(f"samples={samples}: importance needs at least 1 example; samples=null takes all")
        self.samples = samples
        self.outputs = outputs
        self.seed = seed

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        """Mean importance over ``samples`` examples of ``batches`` (all if None)."""
        raise TypeError(f"{type(self).__name__} does not say how it measures importance")

    def check(self, sequence: TaskSequence) -> None:
        fewest = min(task.examples for task in sequence)
        if self.samples is not None and self.samples > fewest:
            raise ConfigError(
                f"samples={self.samples} is more than the {fewest} training examples of the smallest task: use at most "
                f"{fewest}, or samples=null for all"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on one batch, so that a module this strategy cannot read is refused before it is trained."""
        super().on_train_start(trainer, pl_module)
        batches = training_examples(trainer)
        if isinstance(pl_module, Learner) or not isinstance(batches, DataLoader):
            return
        there = len(cast(Sized, batches.dataset))
        if self.samples is not None and self.samples > there:
            raise ConfigError(f"samples={self.samples} is more than the {there} training examples: use at most {there}")
        with undisturbed(pl_module):
            first = next(iter(batches))
        try:
            self.measure(pl_module, [first], self.outputs or default_outputs, None)
        except ValueError as error:
            raise ConfigError(f"{type(self).__name__} cannot measure importance on this module: {error}") from error

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        outputs = self.outputs or (learner_outputs if isinstance(pl_module, Learner) else default_outputs)
        self.examples = 0
        if trainer.world_size == 1:
            importance = self.measure(pl_module, self._counted(training_examples(trainer)), outputs, self.samples)
            self.examples = self.samples or self.examples
            return importance
        drawn = draw(training_examples(trainer), self.samples, self.seed)
        mine = _rows_of_process(drawn, trainer.global_rank, trainer.world_size)
        importance = self.measure(pl_module, self._counted(mine), outputs, None)
        return self._mean_over_processes(trainer, importance)

    def _counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self.examples += _rows(batch)
            yield batch

    def _mean_over_processes(self, trainer: L.Trainer, importance: Params) -> Params:
        """The mean over the examples of all processes, each weighted by its number of examples."""
        device = next(iter(importance.values())).device
        total = trainer.strategy.reduce(torch.tensor(self.examples, device=device), reduce_op="sum")
        share = self.examples / total.item()
        self.examples = int(total)
        return {name: trainer.strategy.reduce(f * share, reduce_op="sum") for name, f in importance.items()}


def training_examples(trainer: L.Trainer) -> Iterable[Any]:
    """The training examples of the task, each once, in a fixed order where that is possible.

    A DataLoader over a map-style data set is read in order, without dropping a last batch and without a sampler;
    any other iterable is read as it comes.
    """
    if isinstance(trainer.datamodule, Task):
        return trainer.datamodule.importance_dataloader()
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size or 1, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


def _rows(batch: Any) -> int:
    return next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def _rows_of_process(batches: Iterable[Any], rank: int, world: int) -> Iterator[Any]:
    """Every ``world``-th example, counted over all batches, from ``rank`` on."""
    seen = 0
    for batch in batches:
        first = (rank - seen) % world
        seen += (number := _rows(batch))
        if first < number:
            yield tree_map(lambda leaf, first=first: leaf[first::world] if isinstance(leaf, Tensor) else leaf, batch)
