"""Options of a sequence: examples per task, class order, a larger first task, drop_last, normalisation."""

from functools import partial

import pytest
import torch

from clbench.data import TaskSequence, chain, permute, rotate, split
from clbench.data.toy import Digits
from clbench.errors import ConfigError

digits = partial(TaskSequence, Digits, scale=16)


def examples(task):
    """Return pairs of the position in the data set and the label."""
    (part,) = task.importance_dataloader().parts
    return list(zip(part.rows.tolist(), part.y.tolist(), strict=True))


def test_examples_per_task_select_a_subset_of_training_examples():
    """Validation and test examples do not change."""
    for some, every in zip(digits(split, examples_per_task=50), digits(split), strict=True):
        assert some.examples == 50
        assert set(examples(some)) < set(examples(every))
        for kind in ("val_dataloader", "test_dataloader"):
            loaders = zip(getattr(some, kind)(), getattr(every, kind)(), strict=True)
            assert all(len(a.parts[0]) == len(b.parts[0]) for a, b in loaders)


def test_examples_per_task_depend_on_the_seed_and_the_task():
    first, again, other = (
        [examples(task) for task in digits(permute, examples_per_task=50, seed=s, validation=0)] for s in (0, 0, 1)
    )
    assert first == again != other
    assert first[0] != first[1]


def test_tasks_may_have_different_numbers_of_examples():
    sequence = digits(split, examples_per_task=[10, 20, 30, 40, 50])
    assert [task.examples for task in sequence] == [10, 20, 30, 40, 50]
    assert sequence.joint(2).examples == 60


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (10_000, "examples_per_task=10000: expected 1 to "),
        (0, "examples_per_task=0: expected 1 to "),
        ([5, 5], "examples_per_task=[5, 5]: expected one number, or a list of 5, one per task"),
    ],
)
def test_more_examples_than_there_are_are_refused(number, message):
    with pytest.raises(ConfigError) as error:
        digits(split, examples_per_task=number)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order": [3, 1, 4, 5, 9, 2, 6, 0]}, [(3, 1), (4, 5), (9, 2), (6, 0)]),
        ({"order": [7, 8, 9], "classes_per_task": [2, 1], "tasks": None}, [(7, 8), (9,)]),
        ({"first_task": 4, "tasks": 3}, [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]),
        ({"first_task": 6, "classes_per_task": 2, "tasks": None}, [(0, 1, 2, 3, 4, 5), (6, 7), (8, 9)]),
    ],
)
def test_classes_have_the_given_order_and_group_sizes(options, expected):
    tasks = options.pop("tasks", 4)
    assert [task.classes for task in digits(partial(split, **options), tasks=tasks)] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": [0, 0, 1]}, r"order=\[0, 0, 1\]: expected a list of different classes from 0 to 9"),
        ({"order": [10]}, r"order=\[10\]: expected a list of different classes from 0 to 9"),
        ({"order": []}, r"order=\[\]: expected a list"),
        ({"first_task": 10}, "first_task=10 .* expected 1 to 9 of the 10 classes"),
        ({"first_task": 2, "classes_per_task": [2, 8]}, "first_task=2"),
    ],
)
def test_an_impossible_order_or_first_task_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        digits(partial(split, **options))


def test_drop_last_drops_only_the_smaller_training_batch():
    """Batches of the importance and of evaluation are kept."""
    (task,) = digits(chain, batch_size=100, drop_last=True)
    assert task.examples == 1293
    loader = task.train_dataloader()
    assert [len(batch.y) for batch in loader] == [100] * 12 and len(loader) == 12
    assert sum(len(batch.y) for batch in task.importance_dataloader()) == 1293
    assert sum(len(batch.y) for batch in task.test_dataloader()[0]) == 360


def test_drop_last_that_would_drop_all_batches_is_refused():
    with pytest.raises(ConfigError, match="drop_last=True: batch_size=1000 leaves no batch for a task with"):
        digits(split, batch_size=1000, drop_last=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, "Give both, or None for both"),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, "expected one value per channel .*, got 3"),
    ],
)
def test_normalisation_that_does_not_fit_the_channels_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        digits(split, **options)


@pytest.mark.parametrize(
    ("options", "turned"),
    [
        ({}, [0, 36, 72, 108, 144]),
        ({"degrees": 90, "tasks": 3}, [0, 30, 60]),
        ({"angles": [90, 0], "tasks": None}, [90, 0]),
    ],
)
def test_tasks_are_turned_by_evenly_spaced_or_given_angles(options, turned):
    from torchvision.transforms.v2.functional import InterpolationMode
    from torchvision.transforms.v2.functional import rotate as turn

    tasks = options.pop("tasks", 5)
    sequence = digits(partial(rotate, **options), tasks=tasks)
    plain = torch.tensor(Digits(train=False).data)[:, None] / 16
    for loader, angle in zip(sequence[0].test_dataloader(), turned, strict=True):
        (batch,) = loader
        torch.testing.assert_close(batch.x, turn(plain, angle, InterpolationMode.BILINEAR), atol=1e-4, rtol=0)
        assert batch.y.tolist() == Digits(train=False).targets


def test_angles_by_the_seed_differ_and_ignore_later_tasks():
    def grids(seed, tasks):
        return [cut.view.grid for cut in digits(partial(rotate, angles="seed"), tasks=tasks, seed=seed).definitions]

    assert all(torch.equal(a, b) for a, b in zip(grids(0, 3), grids(0, 5), strict=False))
    assert len({tuple(grid.flatten().tolist()) for grid in grids(0, 5)}) == 5
    assert not any(torch.equal(a, b) for a, b in zip(grids(0, 3), grids(1, 3), strict=True))


@pytest.mark.parametrize(
    ("options", "tasks", "message"),
    [
        ({"angles": "odd"}, 2, "angles=odd: expected even, seed, or a list of degrees, got 'odd'."),
        ({"angles": [1, 2, 3]}, 2, "tasks=2: expected one angle per task, got angles="),
        ({}, 0, "tasks=0: expected an integer >= 1"),
    ],
)
def test_impossible_angles_are_refused(options, tasks, message):
    with pytest.raises(ConfigError, match=message):
        digits(partial(rotate, **options), tasks=tasks)
