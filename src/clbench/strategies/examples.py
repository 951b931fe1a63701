"""The examples on which an importance is measured: those of the training loader, in a fixed order, as the module gets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from clbench.data import Batches, Task, find_task
from clbench.data.batches import Part
from clbench.data.sequence import EVALUATION_BATCH
from clbench.errors import StrategyError
from clbench.importance.batching import count, flatten, take
from clbench.importance.outputs import Outputs
from clbench.strategies.sampling import SeparateState, in_order, selected_by, undistributed

Data = str | Iterable[Any] | Callable[[L.Trainer], Iterable[Any]]
"""A part of the task by name, or batches, or a function that returns batches given the Trainer when a task has ended."""

PARTS = {"train": "training", "validation": "validation", "test": "test"}


def batches_of(data: Data, trainer: L.Trainer, seed: int = 0, samples: int | None = None) -> Iterable[Any]:
    """Return the batches that ``data`` selects, all of them in every process, before they are moved to the device.

    Raises:
        ConfigError: Validation or test examples are needed, but the datamodule is not a task of a TaskSequence.
    """
    if not isinstance(data, str):
        return in_fixed_order(data(trainer) if callable(data) else data, seed, samples)
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
    """Return the training examples of the task, in a fixed order (``in_fixed_order``).

    A limit of the Trainer (``limit_train_batches``, ``overfit_batches``, ``fast_dev_run``) leaves the first batches of a
    sequential loader, and as many examples of one that shuffles, spread over its whole selection. A stream is read no further
    than it was trained on.

    Args:
        trainer: The Trainer, when it has its loader.
        seed: Seed of the samplers.
        samples: Number of examples that are measured. None measures all.

    Raises:
        ConfigError: There are several loaders, or a sampler can be read only once.
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
    return in_fixed_order(loader, seed, samples, trainer)


def in_fixed_order(
    loader: Iterable[Any], seed: int, samples: int | None, trainer: L.Trainer | None = None
) -> Iterable[Any]:
    """Return the batches of ``loader`` in an order that depends on ``seed`` only. No state of the loader changes.

    The indices are those that its sampler selects, sorted. A sampler that draws is read once, seeded, and an index counts as
    often as it is drawn. The batches of a batch sampler of the user's own are kept. What has no indices becomes a ``Stream``.

    Args:
        loader: The loader. Iterables that are no DataLoader are returned as they are, or as a stream if they were trained on.
        seed: Seed of the samplers.
        samples: Number of examples at which a stream ends.
        trainer: The Trainer that trains on the loader, whose limits apply. With None the loader is used as a whole.

    Raises:
        ConfigError: A sampler can be read only once, or has no length although no Trainer limits it.
    """
    limit, trained, world = math.inf, math.inf, 1
    if trainer is not None:
        world, limit = trainer.world_size, trainer.num_training_batches
        trained = min(limit, trainer.fit_loop.epoch_loop.total_batch_idx + 1)
        if samples is not None:
            samples = samples // world + (trainer.global_rank < samples % world)
    if not isinstance(loader, DataLoader):
        return loader if trainer is None else Stream(loader, trained, samples, seed)
    if type(loader).__iter__ is not DataLoader.__iter__ or type(loader)._get_iterator is not DataLoader._get_iterator:
        return Stream(loader, trained, samples, seed)
    if isinstance(loader.dataset, IterableDataset):
        read = reread(loader, batch_size=loader.batch_size, drop_last=loader.drop_last)
        return Stream(read, trained, samples, seed)
    batch_sampler = loader.batch_sampler
    most = as_count(max(trained, 1))  # before training, the first batch is enough
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        return _of_batch_sampler(loader, batch_sampler, seed, limit, most, trainer)
    return _of_sampler(loader, seed, limit, most, trainer)


def _of_batch_sampler(
    loader: DataLoader[Any], batch_sampler: Any, seed: int, limit: float, most: int | None, trainer: L.Trainer | None
) -> DataLoader[Any]:
    """Return the batches of one seeded pass over a batch sampler of the user's own; several processes share their indices."""
    batches = selected_by(batch_sampler, seed, most if sized_len(batch_sampler) is None else as_count(limit))
    if trainer is not None and trainer.world_size > 1:
        size = max(map(len, batches), default=1)
        indices = union(list(chain.from_iterable(batches)), trainer)
        batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    return reread(loader, batch_sampler=batches)


def _of_sampler(
    loader: DataLoader[Any], seed: int, limit: float, most: int | None, trainer: L.Trainer | None
) -> DataLoader[Any]:
    """Return the sorted indices of one seeded pass over the sampler of ``loader``, no more than the limit of the Trainer."""
    given, size, drops_last = loader.sampler, 1, False
    if isinstance(loader.batch_sampler, BatchSampler):
        batches = loader.batch_sampler
        given, size, drops_last = batches.sampler, batches.batch_size, batches.drop_last
    sampler = undistributed(given)
    world = 1 if trainer is None else trainer.world_size
    each = size if sampler is given else size * world  # examples in a batch of every process
    if (length := sized_len(loader)) is None:
        order = selected_by(sampler, seed, None if most is None else most * each)
    else:
        order = selected_by(sampler, seed, None)
        if limit < length or (drops_last and isinstance(sampler, SequentialSampler)):
            order = order[: int(min(limit, length)) * each]
    if trainer is not None and world > 1:
        order = union(order, trainer) if sampler is given else trainer.strategy.broadcast(order)
    return reread(loader, batch_size=None if loader.batch_sampler is None else size, sampler=in_order(order))


def number_of(batches: Iterable[Any]) -> int | None:
    """Return the number of examples of ``batches``; None if it is unknown before they are read, perhaps only once."""
    if isinstance(batches, Batches):
        return batches.examples
    if not isinstance(batches, DataLoader) or batches.batch_sampler is None:
        return None
    if isinstance(batches.batch_sampler, list):
        return sum(len(indices) for indices in batches.batch_sampler)
    return len(batches.sampler) if isinstance(batches.sampler, list) else None


class Stream:
    """The first batches of an iterable without indices. In several processes each of them reads its own.

    Args:
        batches: The iterable.
        limit: Number of batches, may be infinite.
        samples: Number of examples at which reading stops. None reads all.
        seed: Seed of the random states while it is read.
    """

    def __init__(self, batches: Iterable[Any], limit: float, samples: int | None, seed: int) -> None:
        self.batches, self.limit, self.samples, self.seed = batches, limit, samples, seed

    def __iter__(self) -> Iterator[Any]:
        state = SeparateState(self.seed, *([self.batches] if isinstance(self.batches, DataLoader) else []))
        wanted = self.samples
        with state:
            batches = iter(self.batches)
        read = 0
        while read < self.limit and (wanted is None or wanted > 0):
            with state:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            read += 1
            if wanted is not None:
                if (size := count(batch)) > wanted:
                    batch = take(batch, slice(0, wanted))
                wanted -= size
            yield batch


def as_count(limit: float) -> int | None:
    """Return ``limit`` as a bound of ``islice``."""
    return None if math.isinf(limit) else int(limit)


def union(indices: list[Any], trainer: L.Trainer) -> list[Any]:
    """Return the indices of all processes, each once, in the order of the processes."""
    of_ranks: list[list[Any]] = [[] for _ in range(trainer.world_size)]
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


def transferred(module: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield ``batches`` as ``module`` gets them: cast, moved and changed by its hooks or those of its data module.

    ``trainer.training`` is False in these hooks, so that they do not augment. A module without a Trainer has only its own hooks.

    Raises:
        ConfigError: A hook needs a Trainer, and the module has none.
    """
    trainer: L.Trainer | None = getattr(module, "_trainer", None)
    for batch in batches:
        if trainer is not None:
            with outside_training(trainer):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        elif isinstance(module, L.LightningModule):
            try:
                batch = module.on_before_batch_transfer(batch, 0)
                batch = module.transfer_batch_to_device(batch, module.device, 0)
                batch = module.on_after_batch_transfer(batch, 0)
            except RuntimeError as error:
                if "not attached" not in str(error):
                    raise
                raise StrategyError(
                    f"a transfer hook of {type(module).__name__} needs its Trainer. Load the weights into the module that was "
                    "trained: module.load_state_dict(torch.load(path)['state_dict'])"
                ) from error
        yield batch


@contextmanager
def outside_training(trainer: L.Trainer) -> Iterator[None]:
    """Set the stage of the Trainer so that ``trainer.training`` is False inside."""
    stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


def in_precision_of(module: nn.Module, outputs: Outputs) -> Outputs:
    """Return ``outputs`` with tensors that ``forward`` creates in the dtype that they have in training (16-true, 64-true)."""
    trainer: L.Trainer | None = getattr(module, "_trainer", None)
    if trainer is None or not isinstance(plugin := trainer.precision_plugin, HalfPrecision | DoublePrecision):
        return outputs

    @wraps(outputs)
    def converted(module: nn.Module, batch: Any) -> tuple[Any, ...]:
        with plugin.forward_context():
            return outputs(module, batch)

    return converted


def are_equal(a: Any, b: Any) -> bool:
    """Return whether two batches contain equal tensors."""
    pairs = zip(flatten(a)[0], flatten(b)[0], strict=False)
    return all(_are_equal(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def _are_equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())  # two nan are equal


def examples_of_process(batches: Iterable[Any], rank: int, world: int) -> Iterator[Any]:
    """Yield every ``world``-th example, counted over all batches, starting with example ``rank``."""
    seen = 0
    for batch in batches:
        first = (rank - seen) % world
        seen += (number := count(batch))
        if first < number:
            yield take(batch, slice(first, None, world))
