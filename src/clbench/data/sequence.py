"""Sequences of tasks made of data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from clbench.data.augment import Augmentation, Transform
from clbench.data.batches import Part, Pixels, as_floats, as_tokens, is_number
from clbench.data.blur import check_blur, exchanged
from clbench.data.conversion import Conversion
from clbench.data.fingerprint import combine
from clbench.data.images import Images, Streamed
from clbench.data.parts import Parts, check_parts, numbers_per_task, parts_of, set_aside, some_of
from clbench.data.scenario import Scenario
from clbench.data.source import read
from clbench.data.splits import TaskDefinition, check_definitions
from clbench.data.targets import LABEL, LOSSES, POSITIONS
from clbench.data.task import Task
from clbench.errors import DataError, expected

EVALUATION_BATCH = 1000
"""Examples in a batch for evaluation and importance."""

EVALUATION_POSITIONS = 2**16
"""Largest number of tokens or pixels with a label in such a batch."""


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
        channels: Number of channels to which every image is converted, 1 (grey) or 3 (RGB). None keeps it.
        memory_limit: Limit in bytes. If the uint8 images of a data set take more, worker processes stream them instead; the
            batches are the same. None is half of the available memory.
        workers: Number of these processes. None is one per core, at most 4.
        loss: Name of the loss, which decides what the targets mean, see ``clbench.data.targets``.
        eval_on: Examples on which tasks are evaluated: ``test``, or ``train``, the training examples without augmentation and
            validation examples. Zenke et al. 2017 report such accuracies.
        blur: Share of the training examples that each task exchanges with the other tasks, in [0, 1), see
            ``clbench.data.blur.exchanged``. Validation and test examples are not exchanged. An example keeps its task, which
            selects its outputs in the task-incremental scenario. In the class-incremental scenario all classes occur in every
            task, so all of them compete from the first task on.

    Attributes:
        definitions: Definition of each task.
        sizes: Number of classes of each task. If the targets are not one label per example, the number of outputs.
        kind: Kind of the targets: ``label``, ``labels``, ``positions`` or ``numbers``.
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
        channels: int | None = None,
        memory_limit: int | None = None,
        workers: int | None = None,
        loss: str = "cross_entropy",
        blur: float = 0.0,
        eval_on: str = "test",
    ) -> None:
        if eval_on not in ("test", "train"):
            raise DataError(expected("eval_on", eval_on, "test or train"))
        self.eval_on = eval_on
        if loss not in LOSSES:
            raise DataError(expected("loss", loss, f"one of {', '.join(LOSSES)}"))
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
        self.blur = check_blur(blur)
        self.name, self.batch_size, self.validation, self.seed = name, batch_size, validation, seed
        self.scenario = scenario or Scenario()
        self.pixels = Pixels.of(scale, mean, std)
        self.drop_last = drop_last
        self.augment = Augmentation.of(augment) if augment else None
        read_one = partial(
            read, convert=Conversion.of(resize, channels), memory_limit=memory_limit, workers=workers, loss=loss
        )
        sources = [read_one(s) for s in source] if isinstance(source, Sequence) else read_one(source)
        self.fingerprint = combine([s.fingerprint for s in (sources if isinstance(sources, list) else [sources])])
        self.definitions = split(sources, tasks=tasks, seed=seed)
        check_definitions(self.definitions)
        self.sizes = [len(c.classes) for c in self.definitions]
        self.kind = self.definitions[0].source.kind
        self.scenario.check(self.sizes, self.kind)
        self._check_images()
        self._moved: dict[tuple[int, torch.device], Images | Streamed] = {}
        self._parts = self._divided()
        if examples_per_task is not None:
            for parts, number in zip(self._parts, numbers_per_task(examples_per_task, len(self)), strict=True):
                parts["train"] = some_of(parts["train"], number, seed)
        own = [parts["train"] for parts in self._parts]
        self._training = exchanged(own, blur, seed) if blur else [[part] for part in own]
        fewest = min(map(len, own))
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
        return Task(self, index, [self._training_of(index, index)])

    def joint(self, index: int) -> Task:
        """Return a task with the mixed training data of all tasks up to ``index``, for joint training."""
        return Task(self, index, [self._training_of(j, index) for j in range(index + 1)])

    def rehearsing(self, index: int, chosen: Sequence[Tensor]) -> Task:
        """Return task ``index`` mixed with the training examples of earlier tasks j at the indices ``chosen[j]``.

        The sequence must not be blurry.
        """
        earlier = [[part.at(some) for part in self._training_of(j, index)] for j, some in enumerate(chosen)]
        return Task(self, index, [self._training_of(index, index), *earlier])

    def newest(self, after: int) -> int:
        """Return the index of the newest task whose examples occur up to the end of task ``after``."""
        return len(self) - 1 if self.blur else after

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) of an image, (T,) of tokens, (F,) of a row of a table."""
        return self.definitions[0].source.train.shape

    @property
    def has_images(self) -> bool:
        """Whether the inputs are images."""
        return len(self.shape) == 3

    @property
    def evaluation_batch(self) -> int:
        """Number of examples in a batch for evaluation and importance."""
        return min(EVALUATION_BATCH, max(1, EVALUATION_POSITIONS // prod(self.positions)))

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of the positions that have a label each: (T,) of tokens, (H, W) of pixels, () if there are none."""
        return tuple(self.definitions[0].source.train.y.shape[1:]) if self.kind == POSITIONS else ()

    def inputs(self, examples: int) -> Tensor:
        """Return inputs (N, ...) to count the features of a net: zeros, or for tokens the largest token of the data."""
        source = self.definitions[0].source.train
        x = torch.zeros(examples, *self.shape, dtype=source.dtype)
        if not self.has_images and not x.is_floating_point():
            sources = {id(task.source): task.source for task in self.definitions}.values()
            x += max(
                int(part.x.max()) for each in sources for part in (each.train, each.test) if isinstance(part, Images)
            )
        return self._convert(source)(x)

    def _convert(self, source: Images | Streamed) -> Callable[[Tensor], Tensor]:
        """Return the function that converts stored values to the input of the network."""
        if self.has_images:
            return self.pixels
        return as_floats if source.dtype.is_floating_point else as_tokens

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

    def _check_images(self) -> None:
        """Raise ConfigError if an option of images does not fit the inputs."""
        if self.has_images:
            self.pixels.check(self.shape[0])
        elif self.pixels.mean is not None:
            raise DataError(
                f"mean={list(self.pixels.mean)}: expected images, got inputs of shape {self.shape}. Try mean=None and std=None."
            )
        if self.augment is not None and (not self.has_images or self.kind == POSITIONS):
            what = "a label per pixel, which would not move with its pixel" if self.has_images else "no images"
            raise DataError(f"augment: expected images with targets that stay the same, got {what}. Try augment=None.")

    def _divided(self) -> list[Parts]:
        """Return the examples of every task. Tasks of one source have the same validation examples."""
        rows = {id(each.source): set_aside(each.source, self.validation, self.seed) for each in self.definitions}
        divided = []
        for index, definition in enumerate(self.definitions):
            offset = self.scenario.offset(self.sizes, index) if self.kind == LABEL else None
            convert = self._convert(definition.source.train)
            parts = parts_of(definition, index, rows[id(definition.source)], convert, offset)
            check_parts(definition, index, parts, offset, self.validation)
            divided.append(parts)
        return divided

    def _seen_from(self, part: Part, after: int) -> Part:
        return replace(part, task=self.scenario.context(part.task, self.newest(after)))

    def _training_of(self, index: int, after: int) -> list[Part]:
        """Return the training examples of task ``index`` as trained in task ``after``."""
        newest = len(self) - 1 if self.scenario.train_classes == "all" else after
        return [self._seen_from(part, newest) for part in self._training[index]]
