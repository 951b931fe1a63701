"""Sequences of tasks. Each task is a Lightning data module on which any LightningModule can be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from clbench.data.augment import Augmentation, Transform
from clbench.data.batches import Batch, Batches, Part, Pixels, is_number
from clbench.data.fingerprint import combine
from clbench.data.images import Images, Streamed
from clbench.data.scenario import Scenario
from clbench.data.source import Source, read
from clbench.data.splits import TaskDefinition, check_definitions
from clbench.errors import ConfigError, DataError, expected
from clbench.seeding import generator

EVALUATION_BATCH = 1000


class Task(L.LightningDataModule):
    """Data module of one task: its training data, and the validation and test data of every task.

    Batches are ``Batch(x, y, task)``, already on the trainer's device.

    Attributes:
        index: Position in the sequence, from 0.
        name: Name in printed text, where tasks count from 1.
        classes: Classes of the data set, in the order of the task's outputs.

    >>> from clbench.data import chain
    >>> from clbench.data.toy import BitOperation
    >>> sequence = TaskSequence(partial(BitOperation, op="and"), chain, validation=0, scale=1, batch_size=4)
    >>> task = sequence[0]
    >>> task.name, task.examples, task.classes
    ('task 1', 4, (0, 1))
    """

    def __init__(self, sequence: TaskSequence, index: int, training: Sequence[Part]) -> None:
        super().__init__()
        self.sequence = sequence
        self.index = index
        self.name = f"task {index + 1}"
        self.classes = sequence.definitions[index].classes
        self._training = training

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return sum(len(part) for part in self._training)

    @property
    def mixed(self) -> bool:
        """Whether the training data mixes several tasks."""
        return len(self._training) > 1

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
        return self._batches(self._training, EVALUATION_BATCH, shared=False)

    def val_dataloader(self) -> list[Batches]:
        """Return the validation data of every task as evaluated after this task, or an empty list without validation data."""
        if not self.sequence.has_validation:
            return []
        return [self._batches([part], EVALUATION_BATCH) for part in self.sequence.examples_of("validation", self.index)]

    def test_dataloader(self) -> list[Batches]:
        """Return the test data of every task as evaluated after this task."""
        return [self._batches([part], EVALUATION_BATCH) for part in self.sequence.examples_of("test", self.index)]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch unchanged, because its tensors are already on the device."""
        return batch

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

    >>> from clbench.data import chain
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


class TaskSequence:
    """Sequence of tasks to learn one after the other: ``for task in sequence: trainer.fit(module, datamodule=task)``.

    Args:
        source: One torchvision-like data set (a class or partial that takes ``train`` and ``download``), or several.
        split: Function that turns data sets into tasks: ``clbench.data.split``, ``permute``, ``rotate`` or ``chain``, or a
            partial of one.
        tasks: Number of tasks. With None, the split decides.
        scenario: Scenario, which decides which outputs compete. None is task-incremental.
        batch_size: Number of training examples per step.
        validation: Share of the training examples set aside for validation, in [0, 1).
        seed: Seed of all randomness in the data: pixel orders, class order, validation examples, shuffling.
        scale: Pixel value that becomes 1.
        mean, std: Mean and standard deviation of the scaled pixels, one for all channels or a list with one per channel. With
            None, they are not normalised.
        name: Name of the sequence in metrics.json and printed text.
        examples_per_task: Number of training examples per task, drawn with the seed: one number, or one per task. None is all.
        augment: Transform of the uint8 images of training batches, or several that are applied in order, see
            ``clbench.data.augment``. Importance, validation and test batches are not augmented.
        drop_last: Whether to leave out the last training batch of an epoch if it is smaller.
        resize: Side, or height and width, to which every image is resized when it is read. None keeps the size.
        memory_limit: Limit in bytes. If the uint8 images of a data set take more, worker processes stream them instead; the
            batches are the same. None is half of the available memory.
        workers: Number of these processes. None is one per core, at most 4.

    Attributes:
        definitions: Definition of each task.
        sizes: Number of classes of each task.
        fingerprint: 16 hex digits each for the ``train`` and ``test`` part of all data sets, see ``clbench.data.fingerprint``.

    Raises:
        ConfigError: The data are missing or unreadable, or do not allow the number of tasks, share or scenario.

    >>> from clbench.data import chain
    >>> from clbench.data.toy import BitOperation
    >>> sources = [partial(BitOperation, op="and"), partial(BitOperation, op="or")]
    >>> sequence = TaskSequence(sources, chain, validation=0, scale=1, batch_size=4)
    >>> [task.name for task in sequence], sequence.sizes, sequence.shape
    (['task 1', 'task 2'], [2, 2], (1, 1, 2))
    >>> next(iter(sequence[0].train_dataloader())).x.shape
    torch.Size([4, 1, 1, 2])
    """

    def __init__(
        self,
        source: Callable[..., Any] | Sequence[Callable[..., Any]],
        split: Callable[..., list[TaskDefinition]],
        tasks: int | None = None,
        scenario: Scenario | None = None,
        batch_size: int = 128,
        validation: float = 0.1,
        seed: int = 0,
        scale: float = 255.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        name: str = "tasks",
        examples_per_task: int | Sequence[int] | None = None,
        augment: Transform | Sequence[Transform] | None = None,
        drop_last: bool = False,
        resize: int | Sequence[int] | None = None,
        memory_limit: int | None = None,
        workers: int | None = None,
    ) -> None:
        if not (is_number(validation) and 0 <= validation < 1):
            raise DataError(expected("validation", validation, "a share in [0, 1)"))
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("memory_limit", memory_limit, 0),
            ("workers", workers, 0),
        ):
            is_default = value is None and option != "batch_size"
            if not is_default and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise DataError(expected(option, value, f"an integer >= {least}"))
        self.name, self.batch_size, self.validation, self.seed = name, batch_size, validation, seed
        self.scenario = scenario or Scenario()
        self.pixels = Pixels.of(scale, mean, std)
        self.drop_last = drop_last
        self.augment = Augmentation.of(augment) if augment else None
        read_one = partial(read, resize=resize, memory_limit=memory_limit, workers=workers)
        sources = [read_one(s) for s in source] if isinstance(source, Sequence) else read_one(source)
        self.fingerprint = combine([s.fingerprint for s in (sources if isinstance(sources, list) else [sources])])
        self.definitions = split(sources, tasks=tasks, seed=seed)
        check_definitions(self.definitions)
        self.sizes = [len(c.classes) for c in self.definitions]
        self.scenario.check(self.sizes)
        self.pixels.check(self.shape[0])
        self._moved: dict[tuple[int, torch.device], Images | Streamed] = {}
        self._rows = {id(c.source): self._shuffled_examples(c.source) for c in self.definitions}
        self._parts = [self._task_parts(index) for index in range(len(self.definitions))]
        for index, parts in enumerate(self._parts):
            self._check_parts(index, parts)
        if examples_per_task is not None:
            for index, number in enumerate(self._numbers(examples_per_task)):
                self._parts[index]["train"] = self._some(self._parts[index]["train"], number)
        fewest = min(len(parts["train"]) for parts in self._parts)
        if drop_last and fewest < batch_size:
            raise DataError(
                f"drop_last=True: batch_size={batch_size} leaves no batch for a task with {fewest} training examples. "
                f"Use a batch_size of at most {fewest}, or drop_last=False."
            )

    def __len__(self) -> int:
        return len(self.definitions)

    def __iter__(self) -> Iterator[Task]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence[{index}]: expected an index from 0 to {len(self) - 1}")
        return Task(self, index, [self._seen_from(self._parts[index]["train"], index)])

    def joint(self, index: int) -> Task:
        """Return a task with the mixed training data of all tasks up to ``index``, for joint training."""
        return Task(self, index, [self._seen_from(self._parts[j]["train"], index) for j in range(index + 1)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input (C, H, W)."""
        return self.definitions[0].source.train.shape

    @property
    def has_validation(self) -> bool:
        """Whether every task has validation data."""
        return all(len(parts["validation"]) for parts in self._parts)

    def examples_of(self, which: str, after: int) -> list[Part]:
        """Return the ``validation``, ``test`` or ``train`` examples of every task, as evaluated after task ``after``."""
        return [self._seen_from(parts[which], after) for parts in self._parts]

    def on_device(self, part: Part, device: torch.device) -> Part:
        """Return ``part`` with its tensors on ``device``. A data set is copied once for all tasks."""
        key = (id(part.images), device)
        if key not in self._moved:
            self._moved[key] = part.images.to(device)
        view = part.view.to(device) if part.view is not None else None
        return replace(part, images=self._moved[key], rows=part.rows.to(device), y=part.y.to(device), view=view)

    def _check_parts(self, index: int, parts: Mapping[str, Part]) -> None:
        """Raise ConfigError if a class of the task has no training example, or the task has no test example."""
        classes, source = self.definitions[index].classes, self.definitions[index].source
        column = self.scenario.offset(self.sizes, index)
        counts = parts["train"].y.sub(column).bincount(minlength=len(classes)).tolist()
        if 0 in counts:
            raise DataError(
                f"validation={self.validation}: expected training examples of every class, but class "
                f"{classes[counts.index(0)]} of task {index + 1} has only validation examples. Lower validation, or leave out "
                "this class."
            )
        if not len(parts["test"]):
            raise DataError(
                f"data set {source.name}: expected test examples in every task, got none of the classes {list(classes)} of task "
                f"{index + 1}. Add test examples, or leave out these classes."
            )

    def _seen_from(self, part: Part, after: int) -> Part:
        return replace(part, task=self.scenario.context(part.task, after))

    def _shuffled_examples(self, source: Source) -> tuple[Tensor, Tensor]:
        """Return the indices of the training and validation examples of a source, the same for all of its tasks."""
        number = len(source.train.y)
        order = torch.randperm(number, generator=generator(self.seed, "validation"))
        validation_size = round(number * self.validation)
        return order[validation_size:].sort().values, order[:validation_size].sort().values

    def _numbers(self, examples_per_task: int | Sequence[int]) -> list[int]:
        tasks = len(self)
        numbers = [examples_per_task] * tasks if isinstance(examples_per_task, int) else list(examples_per_task)
        if len(numbers) != tasks:
            raise DataError(expected("examples_per_task", numbers, f"one number, or a list of {tasks}, one per task"))
        return numbers

    def _some(self, part: Part, number: int) -> Part:
        """Return ``number`` examples of a part, drawn with the seed and in their original order."""
        if not 1 <= number <= len(part):
            raise DataError(
                f"examples_per_task={number}: expected 1 to {len(part)}, the training examples of task {part.task + 1}. "
                "Lower it, or use None for all."
            )
        order = torch.randperm(len(part), generator=generator(self.seed, "examples", part.task))
        chosen = order[:number].sort().values
        return replace(part, rows=part.rows[chosen], y=part.y[chosen])

    def _task_parts(self, index: int) -> dict[str, Part]:
        split = self.definitions[index]
        column = torch.full((split.source.classes,), -1, dtype=torch.long)
        column[list(split.classes)] = torch.arange(len(split.classes)) + self.scenario.offset(self.sizes, index)
        train, validation = self._rows[id(split.source)]
        test = torch.arange(len(split.source.test.y))

        def part(images: Images | Streamed, rows: Tensor) -> Part:
            y = column[images.y[rows]]
            mine = y >= 0
            return Part(images, rows[mine], y[mine], index, self.pixels, split.view)

        return {
            "train": part(split.source.train, train),
            "validation": part(split.source.train, validation),
            "test": part(split.source.test, test),
        }
