"""Batches: minibatches cut from tensors on the device; no per-example Python, no worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clbench.data.cuts import View
from clbench.data.source import Images
from clbench.errors import ConfigError
from clbench.seeding import generator


class Batch(NamedTuple):
    """x (N, C, H, W) float, y (N,) int64 output columns, task: whose outputs compete, or (N,) where that differs."""

    x: Tensor
    y: Tensor
    task: int | Tensor


@dataclass(frozen=True)
class Pixels:
    """uint8 images -> what a net reads: x / scale, normalised by mean and std per channel if they are given."""

    scale: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.get_default_dtype()).div_(self.scale)
        if self.mean is not None and self.std is not None:
            mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
            x = (x - mean) / std
        return x


@dataclass(frozen=True)
class Part:
    """The examples of one task: ``rows`` of ``images``, their output columns ``y``, and how they are seen."""

    images: Images
    rows: Tensor
    y: Tensor
    task: int
    pixels: Pixels
    view: View | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, rows: Tensor) -> Tensor:
        """X of the images ``rows``, as the net reads them."""
        x = self.pixels(self.images.x.index_select(0, rows))
        return x if self.view is None else self.view(x)


class Batches:
    """The examples of one or more parts in minibatches; iterable again and again, each time the next epoch.

    Args:
        parts: the examples; several are mixed (joint training), each batch then carries a task per example.
        batch_size: of all processes together.
        shuffle: seed numbers of the order, a new order every epoch; None = in order.
        rank, world: this process takes every ``world``-th example of each batch. When shuffling, what does not share
            out equally at the end of an epoch is left out, so that all processes take the same number of steps.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        batch_size: int,
        shuffle: tuple[int, ...] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.parts = tuple(parts)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.examples = sum(len(part) for part in self.parts)
        if shuffle is not None:
            if batch_size < world:
                raise ConfigError(f"batch_size={batch_size} is less than the {world} processes that share a batch: raise it")
            if self.examples % batch_size < world:
                self.examples -= self.examples % batch_size
            self.examples -= self.examples % world

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.shuffle is None:
            order = torch.arange(self.examples)
        else:
            seed, *numbers = self.shuffle
            order = torch.randperm(sum(map(len, self.parts)), generator=generator(seed, "order", *numbers, self.epoch))
            order = order[: self.examples]
            self.epoch += 1
        shares = [indices[self.rank :: self.world].contiguous() for indices in order.split(self.batch_size)]
        return self._one_part(shares) if len(self.parts) == 1 else self._mixed(shares)

    def _one_part(self, shares: Sequence[Tensor]) -> Iterator[Batch]:
        (part,) = self.parts
        order = torch.cat(list(shares)).to(part.rows.device)
        rows, y = part.rows.index_select(0, order), part.y.index_select(0, order)
        start = 0
        for share in shares:
            stop = start + len(share)
            if stop > start:
                yield Batch(part.inputs(rows[start:stop]), y[start:stop], part.task)
            start = stop

    def _mixed(self, shares: Sequence[Tensor]) -> Iterator[Batch]:
        """Batches over several parts, each batch ordered by part."""
        starts = torch.tensor([0] + [len(part) for part in self.parts]).cumsum(0)
        same_task = len({part.task for part in self.parts}) == 1
        for share in shares:
            of = torch.bucketize(share, starts[1:], right=True)
            x, y, task = [], [], []
            for k, part in enumerate(self.parts):
                chosen = (share[of == k] - starts[k]).to(part.rows.device)
                if len(chosen):
                    x.append(part.inputs(part.rows[chosen]))
                    y.append(part.y[chosen])
                    task.append(torch.full_like(y[-1], part.task))
            if x:
                yield Batch(torch.cat(x), torch.cat(y), self.parts[0].task if same_task else torch.cat(task))
