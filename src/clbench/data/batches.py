"""Batches: minibatches cut from tensors on the device; no per-example Python, no worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clbench.data.images import Images, Streamed
from clbench.data.transforms import View
from clbench.errors import DataError, expected
from clbench.seeding import derive, generator

Augment = Callable[[Tensor, int], Tensor]


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

    def check(self, channels: int) -> None:
        """Raise ConfigError if mean and std are not both there, for images of ``channels``, or pixels would be divided by 0."""
        if not self.scale > 0:
            raise DataError(expected("scale", self.scale, "a number > 0", "It is 255 for most images."))
        if (self.mean is None) != (self.std is None):
            raise DataError(f"mean={self.mean} and std={self.std}: give both, or None for both")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise DataError(
                    f"{name}={list(values)} has {len(values)} entries, but the images have {channels} channels. Give one "
                    "per channel, or None"
                )
        if self.std is not None and not min(self.std) > 0:
            raise DataError(
                expected("std", list(self.std), "standard deviations > 0", "Use mean=None and std=None for none.")
            )

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.get_default_dtype()).div_(self.scale)
        if self.mean is not None and self.std is not None:
            mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
            x = (x - mean) / std
        return x


@dataclass(frozen=True)
class Part:
    """The examples of one task: ``rows`` of ``images``, their output columns ``y``, and how they are seen."""

    images: Images | Streamed
    rows: Tensor
    y: Tensor
    task: int
    pixels: Pixels
    view: View | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def seen(self, x: Tensor) -> Tensor:
        """Images x (N, C, H, W), uint8, as the net reads them."""
        x = self.pixels(x)
        return x if self.view is None else self.view(x)


class Batches:
    """The examples of one or more parts in minibatches; iterable again and again, each time the next epoch.

    Its state is a place among the batches: what it is loaded into continues with the next batch.

    Args:
        parts: the examples; several are mixed (joint training), each batch then carries a task per example.
        batch_size: of all processes together.
        shuffle: seed numbers of the order, a new order every epoch; None = in order.
        rank, world: this process takes every ``world``-th example of each batch. When shuffling, what does not share
            out equally at the end of an epoch is left out, so that all processes take the same number of steps.
        augment: ``augment(x, seed)`` changes the uint8 images of each batch; only when shuffling.
        drop_last: leave out the last batch of an epoch where it is smaller than the others; only when shuffling.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        batch_size: int,
        shuffle: tuple[int, ...] | None = None,
        rank: int = 0,
        world: int = 1,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        self.parts = tuple(parts)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.augment = augment
        self.epoch = 0
        self._position = 0  # batches given of the epoch begun last
        self._first = 0  # where the next epoch begins, > 0 after loading a state
        self.examples = sum(len(part) for part in self.parts)
        if shuffle is not None:
            if batch_size % world:
                raise DataError(
                    f"batch_size={batch_size} is not a multiple of the {world} processes that share a batch"
                )
            if drop_last or self.examples % batch_size < world:
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
        shares = [indices[self.rank :: self.world].contiguous() for indices in order.split(self.batch_size)]
        epoch, self.epoch = self.epoch, self.epoch + 1
        first, self._first = self._first, 0
        self._position = first
        batches = self._one_part if len(self.parts) == 1 else self._mixed
        return self._followed(batches(shares[first:], epoch, first))

    def state_dict(self) -> dict[str, int]:
        """The epoch begun last, and how many of its batches have been given."""
        return {"epoch": max(self.epoch - 1, 0), "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        ended = state["position"] >= len(self)
        self.epoch = state["epoch"] + ended
        self._first = 0 if ended else state["position"]

    def _followed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._position += 1
            yield batch

    def _one_part(self, shares: Sequence[Tensor], epoch: int, first: int) -> Iterator[Batch]:
        (part,) = self.parts
        shares = [share for share in shares if len(share)]
        if not shares:
            return
        order, sizes = torch.cat(list(shares)).to(part.rows.device), [len(share) for share in shares]
        rows, labels = (values.index_select(0, order).split(sizes) for values in (part.rows, part.y))
        for step, (x, y) in enumerate(zip(part.images.batches(rows), labels, strict=True), first):
            yield Batch(part.seen(self._augmented(x, epoch, step)), y, part.task)

    def _mixed(self, shares: Sequence[Tensor], epoch: int, first: int) -> Iterator[Batch]:
        """Batches over several parts, each batch ordered by part; parts of one data set are read together."""
        starts = torch.tensor([0] + [len(part) for part in self.parts]).cumsum(0)
        same_task = len({part.task for part in self.parts}) == 1
        chosen = [self._by_part(share, starts) for share in shares if len(share)]
        readers = [
            (reader, [k for k, part in enumerate(self.parts) if part.images is images])
            for images, reader in self._readers(chosen)
        ]
        for step, of in enumerate(chosen, first):
            pieces: dict[int, Tensor] = {}
            for reader, members in readers:
                if any(len(of[k]) for k in members):
                    pieces |= zip(members, next(reader).split([len(of[k]) for k in members]), strict=True)
            x, y, task = [], [], []
            for k, part in enumerate(self.parts):
                if len(of[k]):
                    x.append(part.seen(self._augmented(pieces[k], epoch, step, k)))
                    y.append(part.y[of[k]])
                    task.append(torch.full_like(y[-1], part.task))
            yield Batch(torch.cat(x), torch.cat(y), self.parts[0].task if same_task else torch.cat(task))

    def _by_part(self, share: Tensor, starts: Tensor) -> list[Tensor]:
        """The examples of each part among ``share``, numbered within the part, on its device."""
        of = torch.bucketize(share, starts[1:], right=True)
        return [(share[of == k] - starts[k]).to(part.rows.device) for k, part in enumerate(self.parts)]

    def _readers(self, chosen: Sequence[Sequence[Tensor]]) -> list[tuple[Images | Streamed, Iterator[Tensor]]]:
        """Each data set, with its images for every batch in which it has any."""
        readers = []
        for images in {id(part.images): part.images for part in self.parts}.values():
            members = [k for k, part in enumerate(self.parts) if part.images is images]
            rows = [torch.cat([self.parts[k].rows[of[k]] for k in members]) for of in chosen]
            readers.append((images, images.batches([r for r in rows if len(r)])))
        return readers

    def _augmented(self, x: Tensor, epoch: int, *numbers: int) -> Tensor:
        if self.augment is None or self.shuffle is None:
            return x
        seed, *task = self.shuffle
        return self.augment(x, derive(seed, "augment", *task, epoch, self.rank, *numbers))
