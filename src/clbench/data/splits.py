"""Splits: how one or more data sets become a sequence of tasks. A split is a pure function of sources and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch

from clbench.data.source import Source
from clbench.data.transforms import Permutation, Rotation, View
from clbench.errors import DataError, expected
from clbench.seeding import generator


class TaskDefinition(NamedTuple):
    """One task: the examples of ``source`` whose label is in ``classes``, seen through ``view``.

    ``classes`` are in the order of the task's outputs.
    """

    source: Source
    classes: tuple[int, ...]
    view: View | None = None


def permute(source: Source, tasks: int | None = None, seed: int = 0, first: str = "identity") -> list[TaskDefinition]:
    """All classes in every task, the pixels of each task in an order of its own.

    Args:
        source: one data set.
        tasks: how many; 5 if None.
        seed: of the pixel orders.
        first: ``identity``: the first task is the data set as it is; ``permuted``: it has an order of its own too.

    Raises:
        ConfigError: unknown ``first``, several sources, or no task.
    """
    _one_source("permute", source)
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
) -> list[TaskDefinition]:
    """All classes in every task, the images of each task turned by an angle of its own, counterclockwise.

    Args:
        source: one data set.
        tasks: how many; the number of ``angles`` if they are given, else 5.
        seed: of the angles.
        angles: ``even``: 0, degrees/tasks, 2 degrees/tasks, ...; ``seed``: uniform in [0, degrees); or a list of them.
        degrees: the range.

    Raises:
        ConfigError: unknown ``angles``, not one angle per task, several sources, or no task.
    """
    _one_source("rotate", source)
    number = None if tasks is None else _at_least_one(tasks)
    if not isinstance(angles, str):
        turns = [float(angle) for angle in angles]
        if not turns or number not in (None, len(turns)):
            raise DataError(f"tasks={tasks}: angles={turns} has {len(turns)} entries. Make them agree")
    elif angles == "even":
        turns = [degrees * task / (number or 5) for task in range(number or 5)]
    elif angles == "seed":
        draws = (torch.rand((), generator=generator(seed, "angle", task)) for task in range(number or 5))
        turns = [degrees * draw.item() for draw in draws]
    else:
        raise DataError(expected("angles", angles, "even, seed, or a list of degrees"))
    _, height, width = source.train.shape
    views = [None if turn == 0 else Rotation.of(turn, height, width) for turn in turns]
    return [TaskDefinition(source, tuple(range(source.classes)), view) for view in views]


def split(
    source: Source,
    tasks: int | None = None,
    seed: int = 0,
    classes_per_task: int | Sequence[int] | None = None,
    order: str | Sequence[int] = "natural",
    first_task: int | None = None,
) -> list[TaskDefinition]:
    """The classes of one data set, a few per task.

    Args:
        source: one data set.
        tasks: how many; None follows from ``classes_per_task``, or is 5.
        seed: of the class order.
        classes_per_task: one number, or one per task; None shares the classes out equally.
        order: of the classes: ``natural``, ``seed`` for a shuffle by the seed, or a list; classes that it leaves out
            are not used.
        first_task: number of classes of the first task, where it is a bigger one; the others share what is left.

    Raises:
        ConfigError: more tasks or classes than there are, or shares that are not equal and not given.
    """
    _one_source("split", source)
    classes = _ordered(source.classes, order, seed)
    number = None if tasks is None else _at_least_one(tasks)
    if first_task is None:
        shares = _shares(len(classes), number, classes_per_task)
    else:
        if not 1 <= first_task < len(classes) or number == 1 or isinstance(classes_per_task, Sequence):
            raise DataError(
                f"first_task={first_task} with tasks={tasks}, classes_per_task={classes_per_task}: expected 1 to "
                f"{len(classes) - 1} of the {len(classes)} classes, followed by equal tasks. Give unequal tasks by "
                "classes_per_task=[...] alone"
            )
        others = None if number is None else number - 1
        shares = [first_task, *_shares(len(classes) - first_task, others, classes_per_task)]
    remaining = iter(classes)
    return [TaskDefinition(source, tuple(next(remaining) for _ in range(share))) for share in shares]


def chain(source: Sequence[Source], tasks: int | None = None, seed: int = 0) -> list[TaskDefinition]:
    """One task per data set, in the order given; ``tasks`` takes the first few, ``seed`` is not used.

    Raises:
        ConfigError: more tasks than data sets, or images of different shapes.
    """
    sources = list(source) if isinstance(source, Sequence) else [source]
    number = len(sources) if tasks is None else _at_least_one(tasks)
    if number > len(sources):
        raise DataError(f"tasks={number}: there are {len(sources)} data sets. Lower it or add a data set")
    shapes = [(s.name, s.train.shape) for s in sources]
    if len({shape for _, shape in shapes}) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in shapes)
        raise DataError(f"the data sets have different image shapes, {named}. Bring them to one with resize=[H,W]")
    return [TaskDefinition(s, tuple(range(s.classes))) for s in sources[:number]]


def _ordered(classes: int, order: str | Sequence[int], seed: int) -> list[int]:
    """The classes 0..classes-1 that are used, in their order."""
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
    """Number of classes of each task."""
    if per_task is None:
        number = tasks or 5
        if number > classes:
            raise DataError(f"tasks={number}: there are {classes} classes. Use at most {classes}")
        if classes % number:
            raise DataError(
                f"tasks={number} does not divide {classes} classes equally. Use a divisor of {classes}, or give "
                "classes_per_task=[...]"
            )
        return [classes // number] * number
    shares = (
        [per_task] * (tasks or max(classes // max(per_task, 1), 1)) if isinstance(per_task, int) else list(per_task)
    )
    if tasks is not None and tasks != len(shares):
        raise DataError(f"tasks={tasks}: classes_per_task={shares} has {len(shares)} entries. Make them agree")
    if not shares or min(shares) < 1 or sum(shares) > classes:
        raise DataError(
            f"classes_per_task={shares} needs {sum(shares)} classes, there are {classes}. Each is >= 1, their sum <= {classes}"
        )
    return shares


def _at_least_one(tasks: int) -> int:
    if tasks < 1:
        raise DataError(expected("tasks", tasks, "an integer >= 1"))
    return tasks


def _one_source(split: str, source: Source) -> None:
    if isinstance(source, Sequence):
        raise DataError(
            f"split={split} takes one data set, source=... has {len(source)}. Use clbench.data.chain for several"
        )
