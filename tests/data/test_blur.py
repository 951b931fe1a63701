"""Blurry sequences: the tasks exchange a share of their training examples."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from clbench.data import TaskSequence, permute, split
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits
from clbench.errors import ConfigError

digits = partial(
    TaskSequence, Digits, permute, tasks=4, scale=16, examples_per_task=40, scenario=Scenario("domain", "single")
)


def parts(task):
    """Return the original task and the rows of each part of the training data."""
    return [(part.task, part.rows.tolist()) for part in task.importance_dataloader().parts]


def examples_of(task):
    return [(original, row) for original, rows in parts(task) for row in rows]


def test_every_example_is_used_exactly_once():
    sharp, blurry = digits(), digits(blur=0.3)
    for sequence in (sharp, blurry):
        assert [len(set(examples_of(task))) for task in sequence] == [40] * 4
    assert sorted(e for task in blurry for e in examples_of(task)) == sorted(
        e for task in sharp for e in examples_of(task)
    )


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_each_task_has_that_share_of_other_tasks_evenly(share):
    for index, task in enumerate(digits(blur=share)):
        numbers = {original: len(rows) for original, rows in parts(task)}
        given = round(share * 40)
        assert numbers.pop(index) == 40 - given
        assert sum(numbers.values()) == given
        assert max(numbers.values()) - min(numbers.values()) <= 1


def test_unequal_tasks_keep_their_numbers_of_examples():
    """The number of examples to exchange is that share of the smallest task."""
    sizes = [20, 30, 40, 50]
    blurry = digits(examples_per_task=sizes, blur=0.5)
    assert [task.examples for task in blurry] == sizes
    assert [sum(o != index for o, _ in examples_of(task)) for index, task in enumerate(blurry)] == [10] * 4


def test_the_exchange_depends_on_the_seed_only():
    first, again, other = (
        [parts(task) for task in digits(blur=0.3, seed=seed, validation=0, examples_per_task=None)]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_without_blur_nothing_changes():
    sharp, zero = digits(), digits(blur=0.0)
    assert sharp.fingerprint == zero.fingerprint == digits(blur=0.3).fingerprint
    for one, two in zip(sharp, zero, strict=True):
        for a, b in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.task == b.task


def test_validation_and_test_examples_are_not_exchanged():
    sharp, blurry = digits(), digits(blur=0.3)
    for one, two in zip(sharp, blurry, strict=True):
        for kind in ("val_dataloader", "test_dataloader"):
            for a, b in zip(getattr(one, kind)(), getattr(two, kind)(), strict=True):
                assert torch.equal(a.parts[0].rows, b.parts[0].rows)
        assert not two.mixed


def test_an_example_keeps_the_images_and_labels_of_its_task():
    """The pixels are permuted as in its own task."""
    (x, y), blurry = (
        next(iter(digits(batch_size=4000).joint(3).train_dataloader()))[:2],
        digits(blur=0.3, batch_size=40),
    )
    seen = {(image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)}
    for task in blurry:
        (batch,) = task.train_dataloader()
        assert {(i.numpy().tobytes(), int(label)) for i, label in zip(batch.x, batch.y, strict=True)} <= seen
        assert batch.task.bincount(minlength=4)[task.index] == 28


def test_joint_training_has_the_examples_of_the_blurry_tasks():
    blurry = digits(blur=0.3)
    assert sorted(examples_of(blurry.joint(1))) == sorted(examples_of(blurry[0]) + examples_of(blurry[1]))
    assert blurry.joint(1).mixed


def test_all_classes_compete_from_the_first_blurry_task_on():
    blurry = TaskSequence(
        Digits, split, tasks=5, scale=16, scenario=Scenario("class", "single"), blur=0.2, batch_size=2000
    )
    (batch,) = blurry[0].train_dataloader()
    assert batch.y.unique().tolist() == list(range(10))
    assert batch.task == 4
    assert {part.task for loader in blurry[0].test_dataloader() for part in loader.parts} == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur": 1.0}, "blur=1.0: expected a share in [0, 1)"),
        ({"blur": -0.1}, "blur=-0.1: expected a share in [0, 1)"),
        ({"blur": True}, "blur=True: expected a share in [0, 1)"),
        (
            {"blur": 0.01},
            "blur=0.01: expected at least one example of each task to exchange, got 4 tasks of at least 40",
        ),
        ({"blur": 0.5, "tasks": 1}, "blur=0.5: expected at least one example of each task to exchange, got 1 tasks"),
    ],
)
def test_a_share_that_exchanges_nothing_is_refused(options, message):
    with pytest.raises(ConfigError) as error:
        digits(**options)
    assert str(error.value).startswith(message)
