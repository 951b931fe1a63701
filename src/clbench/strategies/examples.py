"""The examples on which an importance is measured: those of the training loader, in a fixed order, as the module gets them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from clbench.data import Batches, Task, find_task
from clbench.data.batches import Part
from clbench.data.sequence import EVALUATION_BATCH
from clbench.errors import StrategyError
from clbench.importance.batching import count, take

Data = str | Iterable[Any] | Callable[[L.Trainer], Iterable[Any]]
"""A part of the task by name, or batches, or a function that returns batches given the Trainer when a task has ended."""

PARTS = {"train": "training", "validation": "validation", "test": "test"}


def batches_of(data: Data, trainer: L.Trainer, seed: int = 0, samples: int | None = None) -> Iterable[Any]:
    """Return the batches that ``data`` selects, all of them in every process, before they are moved to the device.

    Raises:
        ConfigError: Validation or test examples are needed, but the datamodule is not a task of a TaskSequence.
    """
    if callable(data):
        return data(trainer)
    if not isinstance(data, str):
        return data
    if data == "train":
        return training_examples(trainer, seed, samples)
    if (task := find_task(trainer)) is None:
        raise StrategyError(
            f"data={data}: expected a task of a clbench sequence as datamodule. Try that, or pass batches, data=LOADER"
        )
    part = task.sequence.on_device(examples_of(task, data), trainer.strategy.root_device)
    return Batches([part], EVALUATION_BATCH)


def examples_of(task: Task, which: str) -> Part:
    """Return the ``validation`` or ``test`` examples of ``task``.

    Raises:
        ConfigError: There are none.
    """
    part = task.sequence.examples_of(which, task.index)[task.index]
    if not len(part):
        raise StrategyError(f"data={which}: expected {which} examples, got none. Set data.validation above 0")
    return part


def training_examples(trainer: L.Trainer, seed: int = 0, samples: int | None = None) -> Iterable[Any]:
    """Return the training examples of the task, in a fixed order.

    The indices are those that the sampler of the loader selects, sorted; a sampler that draws is read once, seeded, and an
    index counts as often as it is drawn. A limit of the Trainer (``limit_train_batches``, ``overfit_batches``,
    ``fast_dev_run``) leaves the first batches of a sequential loader, and as many examples of one that shuffles, spread over
    its whole selection. A stream is read as it comes, not further than it was trained on or than ``samples`` examples.

    Args:
        trainer: the Trainer, when it has its loader.
        seed: seed of the samplers.
        samples: number of examples that are measured; None = all.

    Raises:
        ConfigError: several loaders; a sampler without a length.
    """
    if (task := find_task(trainer)) is not None:
        return task.importance_dataloader()
    loader: Iterable[Any] | None = trainer.train_dataloader
    assert loader is not None  # the Trainer has just trained on it
    if isinstance(loader, Mapping | list | tuple):
        raise StrategyError(
            f"data=train: expected one training loader, got a {type(loader).__name__} of loaders. Choose the examples with "
            "data=LOADER or a function of the Trainer"
        )
    limit = trainer.num_training_batches
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__ or is_unbatched(loader):
        return Limited(loader, limit)
    if isinstance(loader.dataset, IterableDataset):
        trained = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return Limited(loader, min(limit, trained) if trained > 0 else limit, samples)
    sampler: Any = loader.batch_sampler
    if type(sampler) is not BatchSampler and trainer.world_size == 1:
        with seeded(sampler, seed):
            return reread(loader, batch_sampler=list(islice(sampler, as_count(limit))))
    size, drops_last = getattr(sampler, "batch_size", None) or 1, bool(getattr(sampler, "drop_last", False))
    sampler = undistributed(getattr(sampler, "sampler", loader.sampler))
    order = drawn(sampler, seed)
    if trainer.world_size > 1 and sampler is loader.sampler:  # of a kind of its own, in every process another
        order = union(order, trainer)
    limited = limit < len(loader) or (drops_last and isinstance(sampler, SequentialSampler))
    if limited:
        order = order[: int(limit) * size * trainer.world_size]
    return reread(loader, batch_size=size, sampler=sorted(order))


def number_of(batches: Iterable[Any]) -> int | None:
    """Return the number of examples of ``batches``; None for what may be read only once."""
    if isinstance(batches, Batches):
        return batches.examples
    if not isinstance(batches, DataLoader) or isinstance(batches.dataset, IterableDataset) or is_unbatched(batches):
        return None
    if isinstance(batches.batch_sampler, list):
        return sum(len(indices) for indices in batches.batch_sampler)
    try:
        return len(batches.batch_sampler.sampler)  # type: ignore[union-attr]
    except (AttributeError, TypeError):
        return None


class Limited:
    """The first batches of an iterable.

    Args:
        batches: the iterable.
        limit: number of batches; may be infinite.
        samples: number of examples at which reading stops; None = no such limit.
    """

    def __init__(self, batches: Iterable[Any], limit: float, samples: int | None = None) -> None:
        self.batches, self.limit, self.samples = batches, limit, samples

    def __iter__(self) -> Iterator[Any]:
        examples = 0
        for batch in islice(self.batches, as_count(self.limit)):
            yield batch
            if self.samples is not None and (examples := examples + count(batch)) >= self.samples:
                return


def as_count(limit: float) -> int | None:
    """Return ``limit`` as a bound of ``islice``."""
    return None if math.isinf(limit) else int(limit)


def is_unbatched(loader: DataLoader[Any]) -> bool:
    """Return whether the loader gives the items of its data set as they are."""
    return loader.batch_size is None and loader.batch_sampler is None


def undistributed(sampler: Any) -> Any:
    """Return the sampler that was given to the loader, of which Lightning made one for several processes."""
    while isinstance(sampler, DistributedSamplerWrapper):
        sampler = sampler.dataset._sampler  # type: ignore[attr-defined]
    if isinstance(sampler, DistributedSampler) and type(sampler).__iter__ in KNOWN:
        return (RandomSampler if sampler.shuffle else SequentialSampler)(sampler.dataset)  # type: ignore[arg-type]
    return sampler


KNOWN = {DistributedSampler.__iter__, UnrepeatedDistributedSampler.__iter__}


def drawn(sampler: Any, seed: int) -> list[int]:
    """Return the indices of one pass over ``sampler``, with all its random draws seeded.

    Raises:
        ConfigError: the sampler has no length.
    """
    try:
        length = len(sampler)
    except TypeError:
        raise StrategyError(
            f"the sampler {type(sampler).__name__} has no length, so the examples of a task are unknown. Give it __len__, or "
            "pass the examples to measure on as data=LOADER"
        ) from None
    with seeded(sampler, seed):
        return [int(index) for index in islice(sampler, length)]


@contextmanager
def seeded(sampler: Any, seed: int) -> Iterator[None]:
    """Seed every random state that a sampler may use; all are as before afterwards."""
    samplers: list[Any] = [sampler, getattr(sampler, "sampler", None)]
    owners = [s for s in samplers if isinstance(getattr(s, "generator", None), torch.Generator)]
    generators = [s.generator for s in owners]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        for owner in owners:
            owner.generator = torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            for owner, generator in zip(owners, generators, strict=True):
                owner.generator = generator
            random.setstate(python)
            np.random.set_state(numpy)


def union(indices: list[int], trainer: L.Trainer) -> list[int]:
    """Return the indices of all processes, each once, in the order of the processes."""
    of_ranks: list[list[int]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(of_ranks, indices)
    return list(dict.fromkeys(chain.from_iterable(of_ranks)))


def reread(loader: DataLoader[Any], **selection: Any) -> DataLoader[Any]:
    """Return a loader of the same data set that reads ``selection``."""
    return DataLoader(
        loader.dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        **selection,
    )


def transferred(trainer: L.Trainer, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield ``batches`` as the module gets them: cast, moved and changed by the hooks of the module or the data module.

    ``trainer.training`` is False in these hooks, so that they do not augment.
    """
    for batch in batches:
        stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
        try:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        finally:
            trainer.state.stage = stage
        yield batch


def are_equal(a: Any, b: Any) -> bool:
    """Return whether two batches hold equal tensors."""
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=False)
    return all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def examples_of_process(batches: Iterable[Any], rank: int, world: int) -> Iterator[Any]:
    """Yield every ``world``-th example, counted over all batches, starting with example ``rank``."""
    seen = 0
    for batch in batches:
        first = (rank - seen) % world
        seen += (number := count(batch))
        if first < number:
            yield take(batch, slice(first, None, world))
