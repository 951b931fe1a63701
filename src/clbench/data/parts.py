"""Divide the examples of a data set among training, validation and test parts of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from clbench.data.batches import Part
from clbench.data.images import Images, Streamed
from clbench.data.source import Source
from clbench.data.splits import TaskDefinition
from clbench.errors import DataError, expected
from clbench.seeding import generator

Parts = dict[str, Part]
"""The ``train``, ``validation`` and ``test`` examples of a task."""


def set_aside(source: Source, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and validation examples of a source, the same for all of its tasks."""
    number = len(source.train.y)
    order = torch.randperm(number, generator=generator(seed, "validation"))
    validation_size = round(number * validation)
    return order[validation_size:].sort().values, order[:validation_size].sort().values


def parts_of(
    definition: TaskDefinition,
    index: int,
    rows: tuple[Tensor, Tensor],
    convert: Callable[[Tensor], Tensor],
    offset: int | None,
) -> Parts:
    """Return the examples of a task.

    Args:
        definition: Definition of the task.
        index: Index of the task.
        rows: Indices of the training and validation examples of its source.
        convert: Function that converts stored values to the input of the network.
        offset: First output column of the task, to which its labels are moved. None for targets other than one label.
    """
    source = definition.source
    column = None if offset is None else _output_columns(definition, offset)

    def part(images: Images | Streamed, rows: Tensor) -> Part:
        y = images.y[rows]
        if column is not None:
            y = column[y]
            rows, y = rows[y >= 0], y[y >= 0]
        return Part(images, rows, y, index, convert, definition.view)

    train, validation = rows
    return {
        "train": part(source.train, train),
        "validation": part(source.train, validation),
        "test": part(source.test, torch.arange(len(source.test.y))),
    }


def check_parts(
    definition: TaskDefinition, index: int, parts: Mapping[str, Part], offset: int | None, validation: float
) -> None:
    """Raise ConfigError if a task has no training or test example, or a class has validation examples only."""
    if offset is None:
        if not len(parts["train"]):
            raise DataError(
                f"validation={validation}: expected training examples in every task, got none in task {index + 1}. "
                "Lower validation."
            )
        return
    missing = set(parts["validation"].y.tolist()) - set(parts["train"].y.tolist())
    if missing:
        name = definition.classes[min(missing) - offset]
        raise DataError(
            f"validation={validation}: expected training examples of every class, but class {name} of task {index + 1} has only "
            "validation examples. Lower validation, or leave out this class."
        )
    if not len(parts["test"]):
        raise DataError(
            f"data set {definition.source.name}: expected test examples in every task, got none of the classes "
            f"{list(definition.classes)} of task {index + 1}. Add test examples, or leave out these classes."
        )


def numbers_per_task(examples_per_task: int | Sequence[int], tasks: int) -> list[int]:
    """Return the number of training examples of each task."""
    numbers = [examples_per_task] * tasks if isinstance(examples_per_task, int) else list(examples_per_task)
    if len(numbers) != tasks:
        raise DataError(expected("examples_per_task", numbers, f"one number, or a list of {tasks}, one per task"))
    return numbers


def some_of(part: Part, number: int, seed: int) -> Part:
    """Return ``number`` examples of a part, drawn with the seed and in their original order."""
    if not 1 <= number <= len(part):
        raise DataError(
            f"examples_per_task={number}: expected 1 to {len(part)}, the training examples of task {part.task + 1}. "
            "Lower it, or use None for all."
        )
    order = torch.randperm(len(part), generator=generator(seed, "examples", part.task))
    return part.at(order[:number].sort().values)


def _output_columns(definition: TaskDefinition, offset: int) -> Tensor:
    """Return the output column of each class of the data set in a task (classes,), -1 for classes that it does not have."""
    column = torch.full((definition.source.classes,), -1, dtype=torch.long)
    column[list(definition.classes)] = torch.arange(len(definition.classes)) + offset
    return column
