"""Tasks: Lightning data modules on which any LightningModule can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from clbench.data.batches import Batch, Batches, Part
from clbench.errors import ConfigError

if TYPE_CHECKING:
    from clbench.data.sequence import TaskSequence


class Task(L.LightningDataModule):
    """Data module of one task: its training data, and the validation and test data of every task.

    Batches are ``Batch(x, y, task)``, already on the trainer's device.

    Attributes:
        index: Position in the sequence, from 0.
        name: Name in printed text, where tasks count from 1.
        classes: Classes of the data set, in the order of the task's outputs.
        mixed: Whether it trains on the training data of several tasks of the sequence.

    >>> from functools import partial
    >>> from clbench.data import TaskSequence, chain
    >>> from clbench.data.toy import BitOperation
    >>> sequence = TaskSequence(partial(BitOperation, op="and"), chain, validation=0, scale=1, batch_size=4)
    >>> task = sequence[0]
    >>> task.name, task.examples, task.classes
    ('task 1', 4, (0, 1))
    """

    def __init__(self, sequence: TaskSequence, index: int, training: Sequence[Sequence[Part]]) -> None:
        super().__init__()
        self.sequence = sequence
        self.index = index
        self.name = f"task {index + 1}"
        self.classes = sequence.definitions[index].classes
        self.mixed = len(training) > 1
        self._training = [part for parts in training for part in parts]

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return sum(len(part) for part in self._training)

    def setup(self, stage: str | None = None) -> None:
        """Reset the loops of a Trainer that has trained an earlier task. Otherwise it would silently train 0 steps."""
        trainer = self.trainer
        if stage != "fit" or trainer is None:
            return
        if 0 < trainer.max_steps <= trainer.global_step:
            raise ConfigError(
                f"Trainer(max_steps={trainer.max_steps}) counts the steps of all tasks, and none is left for {self.name}. Create "
                "a new Trainer for each task, or use max_epochs."
            )
        loop = trainer.fit_loop
        if loop.epoch_progress.current.ready:
            loop.epoch_progress.reset()
            loop.epoch_loop.batch_progress.reset()

    def train_dataloader(self) -> Batches:
        """Return shuffled and augmented minibatches of the training examples, in a new order every epoch."""
        batches = self._batches(
            self._training,
            self.sequence.batch_size,
            shuffle=(self.sequence.seed, self.index),
            augment=self.sequence.augment,
            drop_last=self.sequence.drop_last,
        )
        if self.trainer is not None:  # a fit that resumes from a checkpoint starts at a later epoch
            batches.epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return batches

    def importance_dataloader(self) -> Batches:
        """Return the training examples in a fixed order, all of them in every process, for measuring importance."""
        return self._batches(self._training, self.sequence.evaluation_batch, shared=False)

    @property
    def labels(self) -> Tensor:
        """Targets of the training examples (N, ...), in the order of ``importance_dataloader``."""
        return torch.cat([part.y for part in self._training])

    def examples_at(self, indices: Tensor) -> Batches:
        """Return the training examples at ``indices`` (n,) in this order, without augmentation. The task must not be mixed."""
        (part,) = self._training
        return self._batches([part.at(indices)], self.sequence.evaluation_batch, shared=False)

    def val_dataloader(self) -> list[Batches]:
        """Return the validation data of every task as evaluated after this task, or an empty list without validation data."""
        if not self.sequence.has_validation:
            return []
        return self._evaluated("validation")

    def test_dataloader(self) -> list[Batches]:
        """Return the test data of every task as evaluated after this task, or its training data with ``eval_on="train"``."""
        return self._evaluated(self.sequence.eval_on)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch unchanged, because its tensors are already on the device."""
        return batch

    def _evaluated(self, which: str) -> list[Batches]:
        size = self.sequence.evaluation_batch
        return [self._batches([part], size) for part in self.sequence.examples_of(which, self.index)]

    def _batches(self, parts: Sequence[Part], batch_size: int, shared: bool = True, **training: Any) -> Batches:
        """Return batches on the trainer's device. If ``shared``, each process gets its share."""
        trainer = self.trainer
        if trainer is None:
            return Batches(parts, batch_size, **training)
        parts = [self.sequence.on_device(part, trainer.strategy.root_device) for part in parts]
        rank, world = (trainer.global_rank, trainer.world_size) if shared else (0, 1)
        return Batches(parts, batch_size, rank=rank, world=world, **training)


def find_task(trainer: L.Trainer) -> Task | None:
    """Return the task of a ``TaskSequence`` that ``trainer`` is fitting, None if it is fitting other data.

    >>> find_task(L.Trainer(logger=False, enable_checkpointing=False)) is None
    True
    """
    task = getattr(trainer, "datamodule", None)
    return task if isinstance(task, Task) else None


def task_index(trainer: L.Trainer) -> int | None:
    """Return the index of the task that ``trainer`` is fitting, None if its data module has no ``index``.

    >>> task_index(L.Trainer(logger=False, enable_checkpointing=False)) is None
    True
    """
    index = getattr(getattr(trainer, "datamodule", None), "index", None)
    return index if isinstance(index, int) else None


def task_of(trainer: L.Trainer) -> Task:
    """Return the task of a ``TaskSequence`` that ``trainer`` is fitting.

    Raises:
        ConfigError: The trainer is fitting other data.

    >>> from functools import partial
    >>> from clbench.data import TaskSequence, chain
    >>> from clbench.data.toy import BitOperation
    >>> sequence = TaskSequence(partial(BitOperation, op="and"), chain, validation=0, scale=1, batch_size=4)
    >>> trainer = L.Trainer(logger=False, enable_checkpointing=False)
    >>> trainer.datamodule = sequence[0]  # as trainer.fit(learner, datamodule=sequence[0]) does
    >>> task_of(trainer).name
    'task 1'
    """
    if (task := find_task(trainer)) is None:
        raise ConfigError("expected a task of a TaskSequence. Try trainer.fit(learner, datamodule=sequence[0]).")
    return task
