"""Inputs with targets, in memory, or streamed if they do not fit. Both return the same batches."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clbench.data.items import Examples
from clbench.errors import DataError


@dataclass(frozen=True)
class Images:
    """Inputs x in memory, such as uint8 images (N, C, H, W) or tokens (N, T), and targets y (N, ...)."""

    x: Tensor
    y: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, such as (C, H, W)."""
        return tuple(self.x.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.x.dtype

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the inputs of each of ``rows``, on the device of the rows."""
        for chosen in rows:
            yield self.x.index_select(0, chosen.to(self.x.device)).to(chosen.device)

    def to(self, device: torch.device) -> Images:
        """Return the images on ``device``, or unmoved if they would take more than half of the GPU's free memory."""
        if device.type == "cuda" and self.x.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Streamed:
    """Inputs that do not fit in memory. Worker processes read them batch by batch, ahead of training.

    Args:
        examples: Data set.
        y: Targets (N, ...).
        workers: Number of processes per loop over batches. 0 reads in the main process.
    """

    examples: Examples
    y: Tensor
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, such as (C, H, W)."""
        return self.examples.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored values."""
        return self.examples[0][0].dtype

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
    """Return ``examples`` in memory if their values take at most ``memory_limit`` bytes, streamed otherwise.

    Args:
        examples: Data set.
        memory_limit: Limit in bytes. None is half of the memory that is available now.
        workers: Number of worker processes. None is one per core, at most 4.
    """
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    if len(examples) * examples[0][0].nbytes <= limit:
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


def _stacked(examples: Sequence[tuple[Tensor, Any]]) -> Tensor:
    return torch.stack([x for x, _ in examples])
