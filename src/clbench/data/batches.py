"""Minibatches sliced from tensors on the device, without Python code per example and without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from clbench.data.images import Images, Streamed
from clbench.data.transforms import View
from clbench.errors import DataError, expected
from clbench.seeding import derive, generator

Augment = Callable[[Tensor, int], Tensor]

SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest divisor of pixels. A smaller one is 0 in float32 or loses digits."""


class Batch(NamedTuple):
    """One minibatch.

    Attributes:
        x: Inputs: images (N, C, H, W) or rows of a table (N, F), float, or tokens (N, T), int64.
        y: Output columns of the labels (N,), int64. Other targets, such as labels of tokens or pixels, are (N, ...).
        task: Index of the task whose outputs compete, or (N,) if it differs between examples.

    >>> x, y, task = Batch(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), task=0)
    >>> y.tolist(), task
    ([0, 1], 0)
    """

    x: Tensor
    y: Tensor
    task: int | Tensor


@dataclass(frozen=True)
class Pixels:
    """Convert uint8 images to floats: x / scale, normalised by the mean and std of each channel if they are given."""

    scale: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, scale: Any, mean: Any, std: Any) -> Pixels:
        """Return the conversion with one mean and std for all channels, or one per channel.

        Raises:
            ConfigError: A value is not a finite number, only one of mean and std is given, or a division is by 0.
        """
        if not is_number(scale) or scale < SMALLEST:
            raise DataError(expected("scale", scale, "a finite number > 0", "It is 255 for most images."))
        if (mean is None) != (std is None):
            raise DataError(f"mean={mean}, std={std}: expected both or neither. Give both, or None for both.")
        means, stds = _per_channel("mean", mean), _per_channel("std", std)
        if stds is not None and min(stds) < SMALLEST:
            raise DataError(
                expected("std", std, "standard deviations > 0", "Use mean=None and std=None for no normalisation.")
            )
        return cls(scale, means, stds)

    def check(self, channels: int) -> None:
        """Raise ConfigError unless mean and std fit images with ``channels``."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise DataError(
                    f"{name}={list(values)}: expected one value per channel ({channels} channels), got {len(values)}. Give one "
                    "per channel, or None."
                )

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.get_default_dtype()).div_(self.scale)
        if self.mean is not None and self.std is not None:
            mean, std = (x.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
            x = (x - mean) / std
        return x


def as_tokens(x: Tensor) -> Tensor:
    """Return tokens (N, T) as int64."""
    return x.long()


def as_floats(x: Tensor) -> Tensor:
    """Return the rows of a table (N, F) in the default dtype."""
    return x.to(torch.get_default_dtype())


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether ``value`` is a number that is finite in float32."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= torch.finfo(torch.float32).max
    )


def _per_channel(name: str, value: Any) -> tuple[float, ...] | None:
    """Return a number or a list of numbers as a tuple. It has one value for all channels, or one per channel."""
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(map(is_number, values)):
        rule = "a finite number, or a list with one per channel"
        raise DataError(expected(name, value, rule, "Use mean=None and std=None for no normalisation."))
    return tuple(values)


@dataclass(frozen=True)
class Part:
    """The examples of one task.

    Attributes:
        images: The data set.
        rows: Indices of the examples in ``images`` (N,).
        y: Output columns of their labels (N,), or other targets (N, ...).
        task: Index of the task.
        pixels: Conversion of the stored values to the input of the network.
        view: Transformation of the images by the task, such as a permutation of pixels.
    """

    images: Images | Streamed
    rows: Tensor
    y: Tensor
    task: int
    pixels: Callable[[Tensor], Tensor]
    view: View | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, indices: Tensor) -> Part:
        """Return the examples at ``indices`` (n,) in this order."""
        return replace(self, rows=self.rows[indices], y=self.y[indices])

    def seen(self, x: Tensor) -> Tensor:
        """Return stored values x, such as uint8 images (N, C, H, W), as the input of the network."""
        x = self.pixels(x)
        return x if self.view is None else self.view(x)


def left_out(examples: int, batch_size: int, world: int, drop_last: bool = False) -> int:
    """Return the number of ``examples`` that an epoch leaves out, so that ``world`` processes take the same steps.

    >>> left_out(65, batch_size=32, world=2), left_out(67, batch_size=32, world=2), left_out(67, batch_size=32, world=1)
    (1, 1, 0)
    """
    rest = examples % batch_size
    return rest if drop_last or rest < world else rest % world


class Batches:
    """Iterable of the minibatches of one or more parts. Each iteration is the next epoch.

    The state is the position among the batches. After ``load_state_dict``, iteration continues with the next batch.

    Args:
        parts: Examples. Several parts are mixed (joint training), and each batch then has a task per example.
        batch_size: Batch size over all processes.
        shuffle: Seed numbers of the order, which changes every epoch. None keeps the order.
        rank, world: Rank of this process and number of processes. The process takes every ``world``-th example of each batch.
            With shuffling, a remainder at the end of an epoch that cannot be shared equally is left out, so that all
            processes take the same number of steps.
        augment: Function ``augment(x, seed)`` of the uint8 images of a batch. Only used with shuffling.
        drop_last: Whether to leave out the last batch of an epoch if it is smaller. Only used with shuffling.

    Raises:
        ConfigError: ``batch_size`` is not a multiple of ``world``.

    >>> from clbench.data.images import Images
    >>> images = Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    >>> part = Part(images, rows=torch.arange(5), y=images.y, task=0, pixels=Pixels())
    >>> [batch.y.tolist() for batch in Batches([part], batch_size=2)]
    [[0, 1], [2, 3], [4]]
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
        self._position = 0  # number of batches already returned in the current epoch
        self._first = 0  # index of the first batch of the next epoch, > 0 after loading a state
        self.examples = sum(len(part) for part in self.parts)
        if shuffle is not None:
            if batch_size % world:
                raise DataError(
                    f"batch_size={batch_size}: expected a multiple of the {world} processes that share a batch."
                )
            self.examples -= left_out(self.examples, batch_size, world, drop_last)

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
        """Return the current epoch and the number of its batches that were returned."""
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
        """Yield batches over several parts, each ordered by part. Parts of the same data set are read together."""
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
                    task.append(of[k].new_full((len(of[k]),), part.task))
            yield Batch(torch.cat(x), torch.cat(y), self.parts[0].task if same_task else torch.cat(task))

    def _by_part(self, share: Tensor, starts: Tensor) -> list[Tensor]:
        """Return the indices of ``share`` for each part, counted within the part, on its device."""
        of = torch.bucketize(share, starts[1:], right=True)
        return [(share[of == k] - starts[k]).to(part.rows.device) for k, part in enumerate(self.parts)]

    def _readers(self, chosen: Sequence[Sequence[Tensor]]) -> list[tuple[Images | Streamed, Iterator[Tensor]]]:
        """Return each data set with an iterator over its images for every batch that contains any."""
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
