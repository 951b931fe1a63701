"""Sources: a torchvision-like data set, its training and its test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clbench.data.images import Images, Streamed, in_memory_or_streamed
from clbench.data.items import examples_of
from clbench.data.opening import name_of, opened
from clbench.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """One data set: its name, training and test images, and number of classes."""

    name: str
    train: Images | Streamed
    test: Images | Streamed
    classes: int


def read(
    factory: Callable[..., Any],
    resize: int | Sequence[int] | None = None,
    memory_limit: int | None = None,
    workers: int | None = None,
) -> Source:
    """The training and the test part of a torchvision-like data set, read into memory once, or streamed.

    Args:
        factory: makes the data set; see ``opened``.
        resize: height and width that every image is brought to.
        memory_limit, workers: see ``in_memory_or_streamed``.

    Raises:
        ConfigError: missing and not downloadable, unreadable, or not images of one shape with a label 0, 1, ... each.
    """
    name = name_of(factory)
    train, test = (
        in_memory_or_streamed(examples_of(opened(factory, part), name, resize), memory_limit, workers)
        for part in (True, False)
    )
    classes = int(train.y.max()) + 1
    for part, y in (("training", train.y), ("test", test.y)):
        wrong = y[(y < 0) | (y >= classes)].unique().tolist()
        if wrong:
            raise ConfigError(
                f"data set {name} has the labels {wrong[:5]} in its {part} part: labels are 0, 1, ..., and a class has training "
                "examples; map them in the data set"
            )
    return Source(name, train, test, classes)
