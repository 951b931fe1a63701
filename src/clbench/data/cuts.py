"""Cuts: how one or more data sets become a sequence of tasks. A cut is a pure function of sources and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clbench.data.source import Source
from clbench.errors import ConfigError
from clbench.seeding import generator


@dataclass(frozen=True)
class Permutation:
    """The same shuffle of the pixels for every image: (N, C, H, W) -> (N, C, H, W)."""

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.order).view_as(x)

    def to(self, device: torch.device) -> Permutation:
        return Permutation(self.order.to(device))


class View(Protocol):
    """How a task sees an image: a function of a batch (N, C, H, W) on a device."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def to(self, device: torch.device, /) -> View: ...


class Cut(NamedTuple):
    """One task: the examples of ``source`` whose label is in ``classes``, seen through ``view``.

    ``classes`` are in the order of the task's outputs.
    """

    source: Source
    classes: tuple[int, ...]
    view: View | None = None


def permute(source: Source, tasks: int | None = None, seed: int = 0, first: str = "identity") -> list[Cut]:
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
        raise ConfigError(f"data.cut.first={first!r} is not one of identity, permuted")
    number = 5 if tasks is None else _at_least_one(tasks)
    pixels = source.train.x[0].numel()
    views: list[Permutation | None] = [
        Permutation(torch.randperm(pixels, generator=generator(seed, "pixels", task))) for task in range(number)
    ]
    if first == "identity":
        views[0] = None
    return [Cut(source, tuple(range(source.classes)), view) for view in views]


def split(
    source: Source,
    tasks: int | None = None,
    seed: int = 0,
    classes_per_task: int | Sequence[int] | None = None,
    order: str = "natural",
) -> list[Cut]:
    """The classes of one data set, a few per task.

    Args:
        source: one data set.
        tasks: how many; None follows from ``classes_per_task``, or is 5.
        seed: of the class order.
        classes_per_task: one number, or one per task; None shares the classes out equally.
        order: of the classes: ``natural``, or ``seed`` for a shuffle by the seed.

    Raises:
        ConfigError: more tasks or classes than there are, or shares that are not equal and not given.
    """
    _one_source("split", source)
    if order not in ("natural", "seed"):
        raise ConfigError(f"data.cut.order={order!r} is not one of natural, seed")
    shares = _shares(source.classes, None if tasks is None else _at_least_one(tasks), classes_per_task)
    classes = (
        torch.randperm(source.classes, generator=generator(seed, "classes")).tolist()
        if order == "seed"
        else range(source.classes)
    )
    remaining = iter(classes)
    return [Cut(source, tuple(next(remaining) for _ in range(share))) for share in shares]


def chain(source: Sequence[Source], tasks: int | None = None, seed: int = 0) -> list[Cut]:
    """One task per data set, in the order given; ``tasks`` takes the first few, ``seed`` is not used.

    Raises:
        ConfigError: more tasks than data sets, or images of different shapes.
    """
    sources = list(source) if isinstance(source, Sequence) else [source]
    number = len(sources) if tasks is None else _at_least_one(tasks)
    if number > len(sources):
        raise ConfigError(
            f"data.tasks={number} is more than the {len(sources)} data sets of data.source: lower it or add a data set"
        )
    shapes = [(s.name, tuple(s.train.x.shape[1:])) for s in sources]
    if len({shape for _, shape in shapes}) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in shapes)
        raise ConfigError(f"the data sets of data.source have different image shapes, {named}: bring them to one")
    return [Cut(s, tuple(range(s.classes))) for s in sources[:number]]


def _shares(classes: int, tasks: int | None, per_task: int | Sequence[int] | None) -> list[int]:
    """Number of classes of each task."""
    if per_task is None:
        number = tasks or 5
        if number > classes:
            raise ConfigError(f"data.tasks={number} is more than the {classes} classes allow: use at most {classes}")
        if classes % number:
            raise ConfigError(
                f"data.tasks={number} does not share out {classes} classes equally: use a divisor of {classes}, or say "
                "data.cut.classes_per_task=[...]"
            )
        return [classes // number] * number
    shares = [per_task] * (tasks or max(classes // max(per_task, 1), 1)) if isinstance(per_task, int) else list(per_task)
    if tasks is not None and tasks != len(shares):
        raise ConfigError(
            f"data.tasks={tasks} but data.cut.classes_per_task={shares} has {len(shares)} entries: make them agree"
        )
    if not shares or min(shares) < 1 or sum(shares) > classes:
        raise ConfigError(
            f"data.cut.classes_per_task={shares} needs {sum(shares)} classes, there are {classes}: each >= 1, sum <= {classes}"
        )
    return shares


def _at_least_one(tasks: int) -> int:
    if tasks < 1:
        raise ConfigError(f"data.tasks={tasks}: a sequence has at least 1 task")
    return tasks


def _one_source(cut: str, source: Source) -> None:
    if isinstance(source, Sequence):
        raise ConfigError(
            f"data.cut={cut} takes one data set, data.source has {len(source)}: use clbench.data.chain for several"
        )
