"""Splits: pure functions of data sets and a seed that return the definitions of a sequence of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch

from clbench.data.source import Source
from clbench.data.targets import LABEL, POSITIONS, WHAT
from clbench.data.transforms import NearestRotation, Permutation, Rotation, View
from clbench.errors import DataError, expected
from clbench.seeding import generator

INTERPOLATIONS: dict[str, type[Rotation] | type[NearestRotation]] = {"bilinear": Rotation, "nearest": NearestRotation}
"""Values of ``interpolation`` -> views that rotate."""


class TaskDefinition(NamedTuple):
    """Definition of a task: the examples of ``source`` with a label in ``classes``, transformed by ``view``.

    Attributes:
        source: Data set.
        classes: Classes, in the order of the task's outputs.
        view: Transformation of the images, None for none.
    """

    source: Source
    classes: tuple[int, ...]
    view: View | None = None


def check_definitions(definitions: Sequence[TaskDefinition]) -> None:
    """Raise ConfigError unless a split has returned tasks with different classes of their data set each."""
    if not definitions:
        raise DataError("split: expected at least one task, got none. Return one TaskDefinition per task.")
    for index, (source, classes, _) in enumerate(definitions):
        if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(source.classes)):
            raise DataError(
                f"split: expected different classes from 0 to {source.classes - 1} in every task, got {list(classes)} in task "
                f"{index + 1}. Correct the split."
            )


def permute(source: Source, tasks: int | None = None, seed: int = 0, first: str = "identity") -> list[TaskDefinition]:
    """Split into tasks that have all classes and a different pixel order each.

    Args:
        source: One data set.
        tasks: Number of tasks. None is 5.
        seed: Seed of the pixel orders.
        first: ``identity`` leaves the first task unchanged, ``permuted`` permutes it as well.

    Raises:
        ConfigError: ``first`` is unknown, there are several sources, or there is no task.

    >>> from clbench.data.source import read
    >>> from clbench.data.toy import Digits
    >>> [task.view is None for task in permute(read(Digits), tasks=3)]
    [True, False, False]
    """
    _one_source("permute", source)
    _of_images("permute", source)
    if first not in ("identity", "permuted"):
        raise DataError(expected("first", first, "one of identity, permuted"))
    number = 5 if tasks is None else _at_least_one(tasks)
    pixels = prod(source.train.shape)
    views: list[Permutation | None] = [
        Permutation(torch.randperm(pixels, generator=generator(seed, "pixels", task))) for task in range(number)
    ]
    if first == "identity":
        views[0] = None
    return [TaskDefinition(source, tuple(range(source.classes)), view) for view in views]


def rotate(
    source: Source,
    tasks: int | None = None,
    seed: int = 0,
    angles: str | Sequence[float] = "even",
    degrees: float = 180,
    interpolation: str = "bilinear",
) -> list[TaskDefinition]:
    """Split into tasks that have all classes and rotate the images counterclockwise by a different angle each.

    Args:
        source: One data set.
        tasks: Number of tasks. None is the number of ``angles`` if they are a list, otherwise 5.
        seed: Seed of the angles.
        angles: ``even`` for 0, degrees/tasks, 2 degrees/tasks, ...; ``seed`` for uniform in [0, degrees); or a list of angles.
        degrees: Range of the angles.
        interpolation: ``bilinear``, or ``nearest`` for the pixels of ``PIL.Image.rotate``, as in Mammoth.

    Raises:
        ConfigError: ``angles`` or ``interpolation`` is unknown, ``angles`` is not one per task, there are several sources, or
            there is no task.

    >>> from clbench.data.source import read
    >>> from clbench.data.toy import Digits
    >>> [task.view is None for task in rotate(read(Digits), angles=[0, 45, 90])]
    [True, False, False]
    """
    _one_source("rotate", source)
    _of_images("rotate", source)
    if interpolation not in INTERPOLATIONS:
        raise DataError(expected("interpolation", interpolation, f"one of {', '.join(INTERPOLATIONS)}"))
    number = None if tasks is None else _at_least_one(tasks)
    if not isinstance(angles, str):
        turns = [float(angle) for angle in angles]
        if not turns or number not in (None, len(turns)):
            raise DataError(f"tasks={tasks}: expected one angle per task, got angles={turns}. Make them agree.")
    elif angles == "even":
        turns = [degrees * task / (number or 5) for task in range(number or 5)]
    elif angles == "seed":
        draws = (torch.rand((), generator=generator(seed, "angle", task)) for task in range(number or 5))
        turns = [degrees * draw.item() for draw in draws]
    else:
        raise DataError(expected("angles", angles, "even, seed, or a list of degrees"))
    _, height, width = source.train.shape
    rotation = INTERPOLATIONS[interpolation]
    views: list[View | None] = [None if turn == 0 else rotation.of(turn, height, width) for turn in turns]
    return [TaskDefinition(source, tuple(range(source.classes)), view) for view in views]


def split(
    source: Source,
    tasks: int | None = None,
    seed: int = 0,
    classes_per_task: int | Sequence[int] | None = None,
    order: str | Sequence[int] = "natural",
    first_task: int | None = None,
) -> list[TaskDefinition]:
    """Split the classes of one data set into tasks of a few classes each.

    Args:
        source: One data set.
        tasks: Number of tasks. None follows from ``classes_per_task``, or is 5.
        seed: Seed of the class order.
        classes_per_task: Number of classes per task, or one number for each task. None divides the classes equally.
        order: Order of the classes: ``natural``, ``seed`` to shuffle with the seed, or a list. Classes missing from the
            list are not used.
        first_task: Number of classes of the first task, if it is larger. The other tasks divide the rest.

    Raises:
        ConfigError: There are not enough classes, or they cannot be divided equally.

    >>> from clbench.data.source import read
    >>> from clbench.data.toy import Digits
    >>> [task.classes for task in split(read(Digits), tasks=2)]
    [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    """
    _one_source("split", source)
    if source.kind != LABEL:
        raise DataError(
            f"split=split: expected one label per example, but the targets of data set {source.name} are {WHAT[source.kind]} "
            "with this loss. Try clbench.data.chain or clbench.data.permute, or loss=cross_entropy."
        )
    classes = _ordered(source.classes, order, seed)
    number = None if tasks is None else _at_least_one(tasks)
    if first_task is None:
        shares = _shares(len(classes), number, classes_per_task)
    else:
        if not 1 <= first_task < len(classes) or number == 1 or isinstance(classes_per_task, Sequence):
            raise DataError(
                f"first_task={first_task} with tasks={tasks}, classes_per_task={classes_per_task}: expected 1 to "
                f"{len(classes) - 1} of the {len(classes)} classes, followed by equal tasks. For unequal tasks, use only "
                "classes_per_task=[...]."
            )
        others = None if number is None else number - 1
        shares = [first_task, *_shares(len(classes) - first_task, others, classes_per_task)]
    remaining = iter(classes)
    return [TaskDefinition(source, tuple(next(remaining) for _ in range(share))) for share in shares]


def chain(source: Sequence[Source], tasks: int | None = None, seed: int = 0) -> list[TaskDefinition]:
    """Return one task per data set, in the given order.

    Args:
        source: Data sets.
        tasks: Number of tasks, taken from the beginning. None is all.
        seed: Not used.

    Raises:
        ConfigError: There are more tasks than data sets, or the inputs or targets have different shapes.

    >>> from functools import partial
    >>> from clbench.data.source import read
    >>> from clbench.data.toy import BitOperation
    >>> sources = [read(partial(BitOperation, op=op)) for op in ("and", "or")]
    >>> [task.classes for task in chain(sources)]
    [(0, 1), (0, 1)]
    """
    sources = list(source) if isinstance(source, Sequence) else [source]
    number = len(sources) if tasks is None else _at_least_one(tasks)
    if number > len(sources):
        raise DataError(
            f"tasks={number}: expected at most {len(sources)}, the number of data sets. Lower it or add a data set."
        )
    shapes = [(s.name, s.train.shape) for s in sources]
    if len({shape for _, shape in shapes}) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in shapes)
        raise DataError(
            f"expected data sets with one image shape, got {named}. Try resize=[H,W] for equal sizes, and channels=1 or 3 for "
            "equal channels."
        )
    if len({(s.kind, 0 if s.kind == LABEL else s.classes) for s in sources}) > 1:
        named = ", ".join(f"{s.name} {s.classes}" for s in sources)
        raise DataError(f"expected data sets with equal numbers of outputs, got {named}. Make them equal.")
    return [TaskDefinition(s, tuple(range(s.classes))) for s in sources[:number]]


def _ordered(classes: int, order: str | Sequence[int], seed: int) -> list[int]:
    """Return the classes that are used, in order."""
    if not isinstance(order, str):
        listed = list(order)
        if not listed or len(set(listed)) < len(listed) or not set(listed) <= set(range(classes)):
            raise DataError(expected("order", listed, f"a list of different classes from 0 to {classes - 1}"))
        return listed
    if order not in ("natural", "seed"):
        raise DataError(expected("order", order, "natural, seed, or a list of classes"))
    if order == "seed":
        return torch.randperm(classes, generator=generator(seed, "classes")).tolist()
    return list(range(classes))


def _shares(classes: int, tasks: int | None, per_task: int | Sequence[int] | None) -> list[int]:
    """Return the number of classes of each task."""
    if per_task is None:
        number = tasks or 5
        if number > classes:
            raise DataError(f"tasks={number}: expected at most {classes}, the number of classes.")
        if classes % number:
            raise DataError(
                f"tasks={number}: expected a divisor of the {classes} classes. Use a divisor, or give "
                "classes_per_task=[...]."
            )
        return [classes // number] * number
    shares = (
        [per_task] * (tasks or max(classes // max(per_task, 1), 1)) if isinstance(per_task, int) else list(per_task)
    )
    if tasks is not None and tasks != len(shares):
        raise DataError(f"tasks={tasks}: expected one entry per task, got classes_per_task={shares}. Make them agree.")
    if not shares or min(shares) < 1 or sum(shares) > classes:
        raise DataError(
            f"classes_per_task={shares}: expected numbers >= 1 with a sum of at most {classes}, the number of classes, got "
            f"{sum(shares)}."
        )
    return shares


def _at_least_one(tasks: int) -> int:
    if tasks < 1:
        raise DataError(expected("tasks", tasks, "an integer >= 1"))
    return tasks


def _of_images(split: str, source: Source) -> None:
    if len(source.train.shape) != 3 or source.kind == POSITIONS:
        what = "a label per position" if source.kind == POSITIONS else f"inputs of shape {source.train.shape}"
        raise DataError(
            f"split={split}: expected images whose targets do not depend on the order of the pixels, but data set {source.name} "
            f"has {what}. Try clbench.data.chain."
        )


def _one_source(split: str, source: Source) -> None:
    if isinstance(source, Sequence):
        raise DataError(
            f"split={split}: expected one data set, got {len(source)} in source=.... Use clbench.data.chain for several."
        )
