from functools import partial

import pytest
import torch

from clbench.data import TaskSequence, permute, split
from clbench.data.augment import RandomCrop
from clbench.data.images import Images, Streamed, available_memory
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits

whole = partial(TaskSequence, Digits, scale=16, batch_size=100)
streamed = partial(whole, memory_limit=1000)


def equal(loader, other):
    for a, b in zip(loader, other, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        assert torch.equal(torch.as_tensor(a.task), torch.as_tensor(b.task))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"split": split},
        {"split": partial(permute, first="permuted"), "tasks": 2, "augment": RandomCrop(1)},
        {"split": split, "scenario": Scenario("class", "single"), "tasks": 2, "resize": 5, "examples_per_task": 150},
    ],
    ids=["split", "permuted and augmented", "class-incremental, resized, some"],
)
def test_streamed_data_give_the_same_batches_in_the_same_order(options, workers):
    """Data that do not fit in memory are read from disk and give the batches of data in memory."""
    in_memory, from_disk = whole(**options), streamed(**options, workers=workers)
    assert isinstance(in_memory.definitions[0].source.train, Images)
    assert isinstance(from_disk.definitions[0].source.train, Streamed)
    assert in_memory.shape == from_disk.shape
    a, b = (
        [task.train_dataloader(), task.train_dataloader(), task.importance_dataloader(), task.val_dataloader()[0]]
        for task in (in_memory[1], from_disk[1])
    )
    for one, other in zip(a, b, strict=True):
        equal(one, other)
    equal(in_memory[1].test_dataloader()[0], from_disk[1].test_dataloader()[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_joint_training_on_streamed_data_has_the_same_batches(workers):
    """Joint training reads data that do not fit in memory from disk."""
    joint = [sequence.joint(3).train_dataloader() for sequence in (whole(split), streamed(split, workers=workers))]
    for _ in range(2):
        equal(*joint)


@pytest.mark.parametrize("workers", [0, 1])
def test_streaming_does_not_touch_the_global_generator(workers):
    before = torch.get_rng_state()
    for _ in streamed(split, workers=workers)[0].train_dataloader():
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_the_limit_is_on_the_bytes_of_a_part_of_the_data_set():
    sequence = TaskSequence(Digits, split, memory_limit=1437 * 64)
    assert isinstance(sequence.definitions[0].source.train, Images)
    sequence = TaskSequence(Digits, split, memory_limit=1437 * 64 - 1)
    assert isinstance(sequence.definitions[0].source.train, Streamed)
    assert isinstance(sequence.definitions[0].source.test, Images)


def test_a_run_may_leave_a_streamed_epoch_in_the_middle():
    loader = streamed(split, workers=2, batch_size=10)[0].train_dataloader()
    first = next(iter(loader))
    assert len(first.y) == 10


def test_the_available_memory_is_positive():
    assert available_memory() > 2**20
