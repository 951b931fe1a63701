"""Labelled uint8 images, in memory, or streamed if they do not fit. Both return the same batches."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clbench.data.items import Examples
from clbench.errors import DataError


@dataclass(frozen=True)
class Images:
    """Images x (N, C, H, W), uint8, and labels y (N,), int64, in memory."""

    x: Tensor
    y: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image (C, H, W)."""
        return tuple(self.x.shape[1:])

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each of ``rows``, on the device of the rows."""
        for chosen in rows:
            yield self.x.index_select(0, chosen.to(self.x.device)).to(chosen.device)

    def to(self, device: torch.device) -> Images:
        """Return the images on ``device``, or unmoved if they would take more than half of the GPU's free memory."""
        if device.type == "cuda" and self.x.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Streamed:
    """Images that do not fit in memory. Worker processes read them batch by batch, ahead of training.

    Args:
        examples: Data set.
        y: Labels (N,).
        workers: Number of processes per loop over batches. 0 reads in the main process.
    """

    examples: Examples
    y: Tensor
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image (C, H, W)."""
        return self.examples.shape

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each of ``rows``, on the device of the rows, without using the global generator.

        Raises:
            ConfigError: An image cannot be read, or its shape differs from that of the first image.
        """
        lists = [chosen.tolist() for chosen in rows]
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self.examples),
            batch_sampler=lists,
            num_workers=min(self.workers, len(lists)),
            collate_fn=_stacked,
            generator=torch.Generator(),  # otherwise the loader would seed its workers from the run's generator
        )
        try:
            for x, chosen in zip(loader, rows, strict=True):
                yield x.to(chosen.device)
        except DataError as error:  # a worker process adds its traceback to the text
            raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error

    def to(self, device: torch.device) -> Streamed:
        """Return itself, because every batch is moved when it is read."""
        return self


def in_memory_or_streamed(
    examples: Examples, memory_limit: int | None = None, workers: int | None = None
) -> Images | Streamed:
    """Return ``examples`` in memory if their uint8 images take at most ``memory_limit`` bytes, streamed otherwise.

    Args:
        examples: Data set.
        memory_limit: Limit in bytes. None is half of the memory that is available now.
        workers: Number of worker processes. None is one per core, at most 4.
    """
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    if len(examples) * prod(examples.shape) <= limit:
        return Images(*examples.whole())
    return Streamed(examples, examples.labels(), _workers() if workers is None else workers)


def available_memory() -> int:
    """Return the number of bytes that can be used without swapping, 4 GiB if the system does not report it."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30


def _workers() -> int:
    if multiprocessing.current_process().daemon:  # a daemon process cannot start processes
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


def _stacked(examples: Sequence[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([x for x, _ in examples])
