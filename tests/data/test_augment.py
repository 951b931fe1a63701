from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from clbench.data import TaskSequence, chain, split
from clbench.data.augment import Augmentation, RandomCrop, RandomHorizontalFlip
from clbench.data.toy import Digits


def images(n=64, side=8):
    return torch.randint(1, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def shifts(image, padding):
    """Return every crop of a padded image."""
    padded = nn.functional.pad(image, [padding] * 4)
    side = image.shape[-1]
    return [padded[:, i : i + side, j : j + side] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]


def test_random_crops_are_all_crops_of_the_padded_image():
    x, seen = images(400), set()
    for before, after in zip(x, RandomCrop(1)(x), strict=True):
        (which,) = [k for k, crop in enumerate(shifts(before, 1)) if torch.equal(crop, after)]
        seen.add(which)
    assert seen == set(range(9))


def test_a_random_flip_mirrors_the_given_fraction_of_images():
    x = images(1000)
    y = RandomHorizontalFlip(0.25)(x)
    mirrored = torch.tensor([torch.equal(b, a.flip(-1)) for a, b in zip(x, y, strict=True)])
    assert torch.equal(y[~mirrored], x[~mirrored])
    assert 0.2 < mirrored.double().mean() < 0.3


@pytest.mark.parametrize("transform", [RandomCrop(2), v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()])
def test_each_example_of_a_batch_is_augmented_differently(transform):
    same = images(1).expand(64, -1, -1, -1).contiguous()
    changed = Augmentation.of(transform)(same, 0)
    assert changed.dtype == torch.uint8 and changed.shape == same.shape
    assert len({tuple(x.flatten().tolist()) for x in changed}) > 1


@pytest.mark.parametrize("transform", [RandomCrop(2), v2.RandomCrop(8, padding=2)], ids=["ours", "torchvision"])
def test_augmentation_follows_its_seed_not_the_global_generator(transform):
    """The same seed gives the same images, and the state of the global generator is unchanged."""
    augment = Augmentation.of([transform, RandomHorizontalFlip()])
    first = augment(images(), 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(augment(images(), 3), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(augment(images(), 4), first)


def test_transforms_are_applied_in_their_order():
    x = images(2)
    assert torch.equal(Augmentation.of([lambda one: one // 2, lambda one: one + 1])(x, 0), x // 2 + 1)


augmented = partial(TaskSequence, Digits, split, scale=16, augment=[RandomCrop(1)])


def test_only_training_batches_are_augmented():
    for task, plain in zip(augmented(), TaskSequence(Digits, split, scale=16), strict=True):
        for kind in ("val_dataloader", "test_dataloader"):
            for a, b in zip(getattr(task, kind)(), getattr(plain, kind)(), strict=True):
                assert all(torch.equal(p.x, q.x) for p, q in zip(a, b, strict=True))
        importance = zip(task.importance_dataloader(), plain.importance_dataloader(), strict=True)
        assert all(torch.equal(p.x, q.x) for p, q in importance)
        training = list(zip(task.train_dataloader(), plain.train_dataloader(), strict=True))
        assert all(torch.equal(p.y, q.y) for p, q in training)
        assert not any(torch.equal(p.x, q.x) for p, q in training)


@pytest.mark.parametrize("joint", [False, True], ids=["one task", "joint"])
def test_a_restarted_task_sees_the_same_augmented_images(joint):
    """The images differ between epochs and are the same when the task is started again."""

    def epochs(noise):
        sequence = augmented(seed=1)
        task = sequence.joint(2) if joint else sequence[2]
        loader = task.train_dataloader()
        found = []
        for _ in range(2):
            for batch in loader:
                found.append(batch.x)
                torch.rand(noise)  # dropout uses the global generator between batches
        return found

    first, again = epochs(1), epochs(7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class Same:
    """Return many copies of one image."""

    def __init__(self, train=True, download=False):
        self.data = np.broadcast_to(np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8), (40, 8, 8)).copy()
        self.targets = [k % 2 for k in range(40)]


def test_every_epoch_augments_again():
    loader = TaskSequence(Same, chain, batch_size=100, augment=RandomCrop(2))[0].train_dataloader()
    epochs = [next(iter(loader)).x for _ in range(2)]
    assert not torch.equal(*epochs)
