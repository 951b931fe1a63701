"""Blurry task boundaries: the tasks of a sequence exchange a share of their training examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from clbench.data.batches import Part, is_number
from clbench.errors import DataError, expected
from clbench.seeding import generator


def check_blur(blur: Any) -> float:
    """Return ``blur``.

    Raises:
        ConfigError: It is not a share in [0, 1).

    >>> check_blur(0.3)
    0.3
    """
    if not (is_number(blur) and 0 <= blur < 1):
        raise DataError(expected("blur", blur, "a share in [0, 1)"))
    return blur


def exchanged(tasks: Sequence[Part], share: float, seed: int) -> list[list[Part]]:
    """Return the training examples of each task after the tasks have exchanged ``share`` of them.

    Every task gives g = round(share * n) examples, drawn with the seed, to the other T - 1 tasks, where n is the number of
    training examples of the smallest task. Example k of these, k = 0, ..., g - 1, goes from task i to task
    (i + 1 + k mod (T - 1)) mod T. So every task also receives g examples, evenly from the others. Every example is used exactly
    once, and every task keeps its number of examples.

    This is Blurry-M of Bang et al. 2021 (Rainbow Memory, CVPR) with M = 100 * share: a task has M percent of its examples from
    the other tasks. The paper exchanges examples of classes. Here the unit is a task, so that it also applies to tasks with the
    same classes.

    Args:
        tasks: Training examples of each task.
        share: Share of examples that are exchanged, in (0, 1).
        seed: Random seed of the examples.

    Returns:
        For each task, its examples as one part per original task, in the order of the tasks. Parts without examples are left out.

    Raises:
        ConfigError: There is one task, or ``share`` of the smallest task is less than one example.

    >>> from clbench.data.images import Images
    >>> images = Images(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    >>> tasks = [Part(images, torch.arange(10), images.y, task, pixels=torch.Tensor.float) for task in range(3)]
    >>> [[(part.task, len(part)) for part in parts] for parts in exchanged(tasks, share=0.4, seed=0)]
    [[(0, 6), (1, 2), (2, 2)], [(0, 2), (1, 6), (2, 2)], [(0, 2), (1, 2), (2, 6)]]
    """
    number, fewest = len(tasks), min(map(len, tasks))
    given = round(share * fewest)
    if number < 2 or not given:
        rule = f"at least one example of each task to exchange, got {number} tasks of at least {fewest} examples"
        raise DataError(f"blur={share}: expected {rule}. Try a larger blur, more examples, or blur=0.")
    exchange: list[list[Part]] = [[] for _ in tasks]
    for giver, part in enumerate(tasks):
        order = torch.randperm(len(part), generator=generator(seed, "blur", giver))
        receiver = torch.full((len(part),), giver)
        receiver[order[:given]] = (giver + 1 + torch.arange(given) % (number - 1)) % number
        for task, received in enumerate(exchange):
            chosen = (receiver == task).nonzero()[:, 0]
            if len(chosen):
                received.append(replace(part, rows=part.rows[chosen], y=part.y[chosen]))
    return exchange
