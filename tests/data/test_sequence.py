from collections import Counter
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from clbench.data import TaskSequence, chain, permute, split
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits
from clbench.errors import ConfigError

DOMAIN, CLASS = Scenario("domain", "single"), Scenario("class", "single")
permuted = partial(TaskSequence, Digits, permute, scale=16)
halves = partial(TaskSequence, Digits, split, scale=16)


class Numbered:
    """Data set whose pixels count the images from ``first``, to distinguish two data sets. Labels are 0, 1, 0, ..."""

    def __init__(self, examples=10, first=0, side=2, train=True, download=False):
        self.data = np.arange(first, first + examples, dtype=np.uint8)[:, None, None].repeat(side, 1).repeat(side, 2)
        self.targets = [k % 2 for k in range(examples)]


class Others(Numbered):
    """Another data set of the same shape."""


class Foreign(L.LightningModule):
    """Plain LightningModule that does not use clbench."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.steps = Counter()
        self.orders = {}
        self.seen_by_validation = Counter()
        self.weights = {}

    def training_step(self, batch, batch_idx):
        x, y, task = batch
        self.steps[task] += 1
        self.orders.setdefault((task, self.current_epoch), []).extend(y.tolist())
        return nn.functional.cross_entropy(self.linear(x.flatten(1)), y)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        _, y, task = batch
        self.seen_by_validation[task] += len(y)

    def on_train_end(self):
        self.weights[self.trainer.datamodule.index] = self.linear.weight.detach().clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopsOnTheFirst(Foreign):
    """Stop the trainer after one epoch of the first task, as EarlyStopping does."""

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.datamodule.index == 0


def one_trainer(**options):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **options,
    )


def collected(loader):
    """Return all inputs, labels and tasks of a loader's batches."""
    batches = list(loader)
    return torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches]), {b.task for b in batches}


def rows(task):
    """Return the rows of the data set on which the task trains."""
    (part,) = task.importance_dataloader().parts
    return part.rows.tolist()


@pytest.mark.parametrize("sequence", [permuted(tasks=3), halves(), halves(tasks=2, validation=0.25, seed=4)])
def test_training_and_validation_examples_partition_the_data(sequence):
    """Every training example of the classes of a task is in one of the two parts, and in one only."""
    training = [rows(task) for task in sequence]
    validation = [part.rows.tolist() for part in sequence.examples_of("validation", 0)]
    test = [part.rows.tolist() for part in sequence.examples_of("test", 0)]
    for j, cut in enumerate(sequence.definitions):
        of_task = [k for k, y in enumerate(cut.source.train.y.tolist()) if y in cut.classes]
        assert sorted(training[j] + validation[j]) == of_task
        assert test[j] == [k for k, y in enumerate(cut.source.test.y.tolist()) if y in cut.classes]


def test_the_validation_data_have_the_requested_fraction():
    sequence = halves(validation=0.25)
    assert sum(len(part) for part in sequence.examples_of("validation", 0)) == round(0.25 * 1437)
    assert sum(task.examples for task in sequence) == 1437 - round(0.25 * 1437)


def test_without_validation_data_all_examples_train():
    sequence = halves(validation=0)
    assert sum(task.examples for task in sequence) == 1437
    assert not sequence.has_validation
    assert sequence[0].val_dataloader() == []


def test_validation_is_on_the_same_images_in_all_permuted_tasks():
    parts = permuted(tasks=4).examples_of("validation", 0)
    assert len(parts[0]) == round(0.1 * 1437)
    assert all(torch.equal(part.rows, parts[0].rows) for part in parts)


def test_validation_data_depend_on_the_seed():
    first, again, other = (
        permuted(tasks=1, seed=seed).examples_of("validation", 0)[0].rows.tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_permuted_task_has_the_same_images_with_pixels_moved():
    """The labels and the set of pixel values of an image are those of the first task."""
    loaders = permuted(tasks=3)[0].test_dataloader()
    as_it_is, labels, _ = collected(loaders[0])
    torch.testing.assert_close(as_it_is, torch.tensor(Digits(train=False).data)[:, None] / 16)
    assert labels.tolist() == Digits(train=False).targets
    for loader in loaders[1:]:
        x, y, _ = collected(loader)
        assert y.tolist() == labels.tolist()
        assert not torch.equal(x, as_it_is)
        assert torch.equal(x.flatten(1).sort(1).values, as_it_is.flatten(1).sort(1).values)


def test_training_and_importance_are_on_the_same_examples():
    task = permuted(tasks=2)[1]
    shuffled, in_order = (collected(loader) for loader in (task.train_dataloader(), task.importance_dataloader()))
    pairs = [sorted(zip(x.flatten(1).tolist(), y.tolist(), strict=True)) for x, y, _ in (shuffled, in_order)]
    assert pairs[0] == pairs[1]
    assert not torch.equal(shuffled[0], in_order[0])


def test_the_training_order_depends_on_the_seed_and_the_task():
    orders = [
        [y for batch in task.train_dataloader() for y in batch.y.tolist()]
        for seed in range(2)
        for task in permuted(tasks=3, seed=seed, validation=0)
    ]
    assert len({tuple(order) for order in orders}) == 6
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_importance_is_measured_in_a_fixed_order():
    loader = permuted(tasks=2)[1].importance_dataloader()
    assert torch.equal(collected(loader)[0], collected(loader)[0])


def test_task_incremental_labels_start_at_zero_in_every_task():
    sequence = halves()
    for task in sequence:
        _, y, tasks = collected(task.train_dataloader())
        assert set(y.tolist()) == {0, 1}
        assert tasks == {task.index}
        assert [collected(loader)[2] for loader in task.test_dataloader()] == [{0}, {1}, {2}, {3}, {4}]


def test_class_incremental_labels_continue_over_tasks():
    """Test and validation examples carry the newest task, so their outputs compete with all classes seen."""
    sequence = halves(scenario=CLASS)
    for task in sequence:
        _, y, tasks = collected(task.train_dataloader())
        assert set(y.tolist()) == {2 * task.index, 2 * task.index + 1}
        assert tasks == {task.index}
        for loaders in (task.test_dataloader(), task.val_dataloader()):
            found = [collected(loader) for loader in loaders]
            assert [set(y.tolist()) for _, y, _ in found] == [{2 * j, 2 * j + 1} for j in range(5)]
            assert all(tasks == {task.index} for _, _, tasks in found)


def test_labels_follow_the_order_of_the_classes_of_a_task():
    sequence = TaskSequence(Digits, partial(split, order="seed"), tasks=2)
    targets = torch.tensor(Digits(train=False).targets)
    for j, part in enumerate(sequence.examples_of("test", 0)):
        classes = torch.tensor(sequence[j].classes)
        assert sequence[j].classes == sequence.definitions[j].classes != tuple(sorted(sequence[j].classes))
        assert torch.equal(classes[part.y], targets[part.rows])


@pytest.mark.parametrize(("scenario", "expected"), [(None, {0, 1, 2}), (DOMAIN, {0, 1, 2}), (CLASS, {2})])
def test_joint_training_has_all_examples_up_to_a_task(scenario, expected):
    """Examples carry the task in whose context their outputs compete."""
    sequence = halves(scenario=scenario)
    joint = sequence.joint(2)
    assert joint.examples == sum(sequence[j].examples for j in range(3))
    batches = list(joint.train_dataloader())
    tasks = torch.cat([torch.as_tensor(b.task).expand(len(b.y)) for b in batches])
    assert set(tasks.tolist()) == expected
    assert len(tasks) == joint.examples
    if scenario is None:
        assert [int((tasks == j).sum()) for j in range(3)] == [sequence[j].examples for j in range(3)]


def test_pixels_are_scaled_to_at_most_one_and_normalised():
    scaled, _, _ = collected(permuted(tasks=1)[0].train_dataloader())
    assert (scaled.min().item(), scaled.max().item()) == (0, 1)
    normalised, _, _ = collected(permuted(tasks=1, mean=[0.5], std=[0.25])[0].train_dataloader())
    torch.testing.assert_close(normalised, (scaled - 0.5) / 0.25)


def test_a_task_sequence_is_a_python_sequence():
    sequence = halves()
    assert len(sequence) == 5
    assert [task.index for task in sequence] == [0, 1, 2, 3, 4]
    assert [task.name for task in sequence][3] == sequence[3].name == "task 4"
    assert [task.classes for task in sequence] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert sequence.sizes == [2] * 5
    assert sequence.shape == (1, 8, 8)


@pytest.mark.parametrize("index", [5, -1])
def test_there_is_no_task_outside_a_sequence(index):
    with pytest.raises(IndexError, match=rf"sequence\[{index}\]: expected an index from 0 to 4"):
        halves()[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "validation=1.0: expected a share in [0, 1), got 1.0."),
        ({"validation": -0.1}, "validation=-0.1: expected a share in [0, 1)"),
        ({"batch_size": 0}, "batch_size=0: expected an integer >= 1"),
        (
            {"validation": 0.9999},
            "validation=0.9999: expected training examples of every class, but class 0 of task 1 has only validation",
        ),
        (
            {"split": partial(split, classes_per_task=[3, 5]), "tasks": None, "scenario": DOMAIN},
            "scenario=domain: expected tasks with equal numbers of classes, got [3, 5]",
        ),
    ],
)
def test_a_sequence_that_does_not_fit_the_data_is_refused(options, message):
    with pytest.raises(ConfigError) as error:
        TaskSequence(**{"source": Digits, "split": split, **options})
    assert str(error.value).startswith(message)


def test_chained_data_sets_are_one_task_each():
    sequence = TaskSequence([partial(Numbered, 10), partial(Others, 20, first=100)], chain, validation=0.2, scale=1)
    training = [set(collected(task.train_dataloader())[0].flatten().tolist()) for task in sequence]
    assert [len(numbers) for numbers in training] == [8, 16]
    assert training[0] < set(range(10))
    assert training[1] < set(range(100, 120))
    assert set(collected(sequence[1].test_dataloader()[1])[0].flatten().tolist()) == set(range(100, 120))


def test_chained_data_sets_of_one_class_keep_their_own_examples():
    sequence = TaskSequence([partial(Numbered, 10), partial(Numbered, 20, first=100)], chain, validation=0)
    assert [task.examples for task in sequence] == [10, 20]


def test_any_module_really_trains_on_every_task_with_one_trainer():
    sequence = permuted(tasks=3)
    module, trainer = Foreign(), one_trainer(max_epochs=2)
    for task in sequence:
        trainer.fit(module, datamodule=task)
        assert trainer.state.finished
    steps = 2 * -(-sequence[0].examples // 128)
    assert module.steps == {0: steps, 1: steps, 2: steps}
    assert set(module.orders) == {(task, epoch) for task in range(3) for epoch in range(2)}
    assert len({tuple(order) for order in module.orders.values()}) == 6  # every epoch of every task has a new order
    assert all(len(order) == sequence[0].examples for order in module.orders.values())
    assert not torch.equal(module.weights[0], module.weights[1])
    assert not torch.equal(module.weights[1], module.weights[2])


def test_a_validation_step_sees_validation_data_of_all_tasks():
    sequence = permuted(tasks=2)
    module = Foreign()
    one_trainer(max_epochs=1).fit(module, datamodule=sequence[0])
    examples_of = round(0.1 * 1437)
    assert module.seen_by_validation == {0: examples_of, 1: examples_of}


def test_a_trainer_learns_the_next_task_after_it_was_stopped():
    module, trainer = StopsOnTheFirst(), one_trainer(max_epochs=1)
    for task in permuted(tasks=2):
        trainer.fit(module, datamodule=task)
    assert module.steps[1] == module.steps[0] > 0


def test_a_task_after_an_early_stop_trains_all_its_epochs():
    module, trainer = StopsOnTheFirst(), one_trainer(max_epochs=2)
    for task in permuted(tasks=2):
        trainer.fit(module, datamodule=task)
    assert module.steps[1] == 2 * module.steps[0]


def test_a_trainer_without_steps_left_is_refused_for_a_new_task():
    module, trainer = Foreign(), one_trainer(max_steps=5)
    first, second = permuted(tasks=2)
    trainer.fit(module, datamodule=first)
    with pytest.raises(ConfigError, match="max_steps=5.*none is left for task 2.*new Trainer for each task"):
        trainer.fit(module, datamodule=second)


def test_the_same_seed_gives_the_same_weights():
    def weights(seed):
        torch.manual_seed(0)
        module, trainer = Foreign(), one_trainer(max_epochs=1)
        for task in permuted(tasks=2, seed=seed):
            trainer.fit(module, datamodule=task)
        return module.linear.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
