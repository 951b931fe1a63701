"""Images: labelled uint8 images, in memory or, where they do not fit, streamed; both give the same batches."""

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


@dataclass(frozen=True)
class Images:
    """Inputs x (N, C, H, W), uint8, and labels y (N,), int64, in memory."""

    x: Tensor
    y: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (C, H, W)."""
        return tuple(self.x.shape[1:])

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each of ``rows``, on the device of the rows."""
        for chosen in rows:
            yield self.x.index_select(0, chosen.to(self.x.device)).to(chosen.device)

    def to(self, device: torch.device) -> Images:
        """On ``device``; images that would take more than half of a GPU's free memory stay where they are."""
        if device.type == "cuda" and self.x.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Streamed:
    """Images that do not fit in memory: read batch by batch, ahead of training, by worker processes.

    Args:
        examples: the data set.
        y: its labels (N,).
        workers: processes per loop over batches; 0 reads in this one.
    """

    examples: Examples
    y: Tensor
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (C, H, W)."""
        return self.examples.shape

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each of ``rows``, on the device of the rows; draws nothing from the global generator."""
        lists = [chosen.tolist() for chosen in rows]
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self.examples),
            batch_sampler=lists,
            num_workers=min(self.workers, len(lists)),
            collate_fn=_stacked,
            generator=torch.Generator(),  # else the loader takes its workers' seeds from the run's
        )
        for x, chosen in zip(loader, rows, strict=True):
            yield x.to(chosen.device)

    def to(self, device: torch.device) -> Streamed:
        """Itself: batches go to the device one by one."""
        return self


def in_memory_or_streamed(
    examples: Examples, memory_limit: int | None = None, workers: int | None = None
) -> Images | Streamed:
    """``examples`` in memory if their uint8 images take at most ``memory_limit`` bytes, else streamed.

    Args:
        examples: the data set.
        memory_limit: None = half of the memory that is available now.
        workers: None = as many as there are cores, at most 4.
    """
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    if len(examples) * prod(examples.shape) <= limit:
        return Images(*examples.whole())
    return Streamed(examples, examples.labels(), _workers() if workers is None else workers)


def available_memory() -> int:
    """Bytes that can be used without swapping; 4 GiB where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30


def _workers() -> int:
    if multiprocessing.current_process().daemon:  # a daemon may not start processes
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


def _stacked(examples: Sequence[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([x for x, _ in examples])
