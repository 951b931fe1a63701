"""Data that cannot be used is refused in one line before training, from Python and from a yaml."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData, ImageFolder

import clbench
from clbench.data import TaskSequence, chain, split
from clbench.data.splits import TaskDefinition
from clbench.data.toy import Digits
from clbench.errors import ConfigError
from tests.conftest import others_slow

NAN = float("nan")
GOOD = [0, 1, 2, 3] * 5


class Arrays:
    """Data set with arrays ``data`` and ``targets``."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.data, self.targets = images, labels


class Items:
    """Data set of pairs, whose labels are known only from the pairs."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.pairs = list(zip(images, labels, strict=False))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.pairs[row]


class ItemsWithTargets(Items):
    """Data set of pairs with a list of all labels."""

    def __init__(self, images: Any, labels: Any) -> None:
        super().__init__(images, labels)
        self.targets = labels


class OtherTargets(Items):
    """Data set of pairs with other labels than its list of labels, as a wrapper may have."""

    def __init__(self, images: Any, labels: Any) -> None:
        super().__init__(images, [label + 1 for label in labels])
        self.targets = labels


class ItemsWithTags(Items):
    """Data set of pairs with the labels 0, 1, 0, ... in a list."""

    def __init__(self, images: Any) -> None:
        self.targets = [row % 2 for row in range(len(images))]
        super().__init__(images, self.targets)


class FromTorchvision(FakeData):
    """Data set of torchvision whose labels come from ``target_transform``."""

    def __init__(self, images: Any, labels: Any) -> None:
        super().__init__(len(images), (3, 4, 4), transform=np.asarray)
        self.labels_of_rows = labels

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        image, _ = super().__getitem__(row)
        return image, self.labels_of_rows[row]


def pixels(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (number, *(shape or (4, 4)))).astype(np.uint8)


FORMS = {
    "arrays": Arrays,
    "tensors": lambda images, labels: Arrays(torch.tensor(images), torch.tensor(labels)),
    "TensorDataset": lambda images, labels: TensorDataset(torch.tensor(images), torch.tensor(labels)),
    "items": Items,
    "items with targets": ItemsWithTargets,
    "torchvision": FromTorchvision,
}

LABELS = {
    "half": ([0.5, 1, 2, 3] * 5, "expected one integer label 0, 1, ... per image, got 0.5 (float"),
    "nan": ([0.0, NAN, 2, 3] * 5, "per image, got nan (float"),
    "infinite": ([0.0, float("inf"), 2, 3] * 5, "got inf (float"),
    "whole floats": ([0.0, 1.0, 2.0, 3.0] * 5, "got 0.0 (float"),
    "bool": ([True, False] * 10, "got True (bool). Number the classes 0, 1, ..."),
    "one-hot": (np.eye(4, dtype=int)[GOOD].tolist(), "got labels of shape (20, 4). Use labels.argmax(1)"),
    "column": ([[y] for y in GOOD], "got labels of shape (20, 1). Use "),
    "from 1": (
        [1, 2, 3, 4] * 5,
        "expected labels from 0 to 3 for the 4 classes of the training set, got [4] in the training",
    ),
    "gap": ([0, 1, 2, 4] * 5, "got [4] in the training set. Number the classes 0, 1, ... in the data set"),
    "negative": ([-1, 0, 1, 2] * 5, "got [-1] in the training set"),
    "huge": ([0, 1, 2, 10**9] * 5, "got [1000000000] in the training set"),
}
"""Labels of 20 images -> part of the message. Every form of data sets refuses them."""

OBJECTS = {
    "text": (["cat", "dog"] * 10, "got 'cat' (<U3). Number the classes"),
    "none": ([None, 1] * 10, "got None (object)"),
    "dictionaries": ([{"label": 1}] * 20, "got {'label': 1} (object)"),
    "ragged": ([[0], [1, 2]] * 10, "got labels of several shapes or types"),
    "beyond int64": ([2**64 - 1] * 20, "got 18446744073709551615"),
    "beyond uint64": ([10**30, 0] * 10, f"got {10**30} (object)"),
}
"""Labels that no tensor can contain."""


def both(form: Any, images: Any, labels: Any = GOOD, test: Any = None, test_labels: Any = GOOD):
    """Return the pair of training and test set."""
    return form(images, labels), form(images[:20] if test is None else test, test_labels)


def varying(number: int) -> list[np.ndarray]:
    return [pixels(1, 4 + row % 2, 4)[0] for row in range(number)]


X = pixels(20)
UNIT = X / np.float32(255)
UNUSABLE = {
    **{f"labels {name}": (lambda y=y: both(Arrays, X, y), text) for name, (y, text) in (LABELS | OBJECTS).items()},
    "too few labels": (lambda: both(Arrays, X, GOOD[:-1]), "got 19 labels for 20 images. Make their numbers equal"),
    "too many targets of items": (lambda: both(ItemsWithTargets, X, [*GOOD, 0]), "got 21 labels for 20 images"),
    "test label without training": (lambda: both(Arrays, X, [0, 1] * 10), "for the 2 classes of the training set, got [2, 3] in"),
    "no training images": (lambda: both(Arrays, X[:0], [], X), "expected at least one image, got none"),
    "no test images": (lambda: both(Arrays, X, GOOD, X[:0], []), "(test): expected at least one image, got none"),
    "no items": (lambda: both(Items, X[:0], [], X), "expected at least one image, got none"),
    "no test items": (lambda: both(Items, X, GOOD, X[:0], []), "(test): expected at least one image, got none"),
    "task without test images": (
        lambda: both(Arrays, X, GOOD, X[:10], [0, 1] * 5),
        "expected test examples in every task, got none of the classes [2, 3] of task 2. Add test examples, or leave out",
    ),
    "test shape": (
        lambda: both(Arrays, X, GOOD, pixels(20, 5, 5)),
        "expected test images of the shape of the training images (1, 4, 4), got (1, 5, 5). Set resize=[H,W]",
    ),
    "test channels": (lambda: both(Items, X, GOOD, pixels(20, 4, 4, 3)), "training images (1, 4, 4), got (3, 4, 4)"),
    "shapes": (lambda: both(Items, varying(20)), "of one shape, got (1, 4, 4) for image 0 and (1, 5, 4) for image 1"),
    "no pixels": (lambda: both(Arrays, pixels(20, 0, 4)), "expected images (C, H, W) with pixels, got the shape (1, 0, 4)"),
    "float arrays": (lambda: both(Arrays, UNIT), "got float32 data (20, 4, 4). Convert pixels in [0, 1] with"),
    "complex arrays": (lambda: both(Arrays, X.astype(complex)), "got complex128 data (20, 4, 4)"),
    "text arrays": (lambda: both(Arrays, X.astype(str)), "got <U3 data (20, 4, 4)"),
    "object arrays": (lambda: both(Arrays, X.astype(object)), "got object data (20, 4, 4)"),
    "complex": (lambda: both(Items, X.astype(complex)), "floats in [0, 1], got torch.complex128 (1, 4, 4) for image 0"),
    "text": (lambda: both(Items, X.astype(str)), "floats in [0, 1], got ndarray for image 0"),
    "objects": (lambda: both(Items, X.astype(object)), "floats in [0, 1], got ndarray for image 0"),
    "file names": (lambda: both(Items, ["a.png"] * 20), "floats in [0, 1], got str for image 0"),
    "nan pixels": (lambda: both(Items, np.where(X > 200, NAN, UNIT)), "got torch.float32 (1, 4, 4) from nan to nan for image 0"),
    "normalised": (lambda: both(Items, 2 * UNIT - 1), "Normalise with mean=... and std=... instead of a transform"),
    "integers": (lambda: both(Items, X.astype(int)), "floats in [0, 1], got torch.int64 (1, 4, 4)"),
    "16 bits": (lambda: both(Items, [Image.fromarray(x.astype(np.int32) * 9) for x in X]), "got torch.int32 (1, 4, 4)"),
    "one dimension": (lambda: both(Items, pixels(20, 4)), "got torch.uint8 (4,) for image 0"),
    "four dimensions": (lambda: both(Items, pixels(20, 1, 4, 4, 1)), "got torch.uint8 (1, 4, 4, 1) for image 0"),
    "no pair": (lambda: ([3] * 20, [3] * 20), "dataset[i] = (image, label), got cannot unpack"),
    "no length": (lambda: (iter(X), iter(X)), "expected a data set with a length"),
    "nothing": (lambda: (None, None), "expected a data set with a length"),
}  # fmt: skip
"""Functions that return the training and test set -> part of the message."""


def no_split(source: Any, tasks: int | None = None, seed: int = 0) -> list[TaskDefinition]:
    return []


def wrong_classes(source: Any, tasks: int | None = None, seed: int = 0) -> list[TaskDefinition]:
    return [TaskDefinition(source, (0, 1)), TaskDefinition(source, (3, 99))]


OPTIONS = [
    ("std", 0, "std=0: expected standard deviations > 0"),
    ("std", [1, 0], "std=[1, 0]: expected standard deviations > 0"),
    ("std", -1, "std=-1: expected standard deviations > 0"),
    ("std", [1, NAN], "std=[1, nan]: expected a finite number, or a list with one per channel"),
    ("std", 1e-60, "std=1e-60: expected standard deviations > 0"),
    ("std", [], "std=[]: expected a finite number, or a list"),
    ("std", "a", "std=a: expected a finite number, or a list"),
    ("std", True, "std=True: expected a finite number, or a list"),
    ("std", [1, 1], "std=[1, 1]: expected one value per channel (1 channels), got 2"),
    ("mean", NAN, "mean=nan: expected a finite number, or a list"),
    ("mean", float("inf"), "mean=inf: expected a finite number, or a list"),
    ("mean", {"a": 1}, "mean={'a': 1}: expected a finite number, or a list"),
    ("mean", [0, 0], "mean=[0, 0]: expected one value per channel (1 channels), got 2"),
    ("scale", 0, "scale=0: expected a finite number > 0"),
    ("scale", NAN, "scale=nan: expected a finite number > 0"),
    ("scale", "a", "scale=a: expected a finite number > 0"),
    ("resize", "28", "resize=28: expected a side, or a height and a width"),
    ("resize", [4, 2.5], "resize=[4, 2.5]: expected a side"),
    ("validation", NAN, "validation=nan: expected a share in [0, 1)"),
    ("validation", "a", "validation=a: expected a share in [0, 1)"),
    ("workers", -1, "workers=-1: expected an integer >= 0"),
    ("memory_limit", 0.5, "memory_limit=0.5: expected an integer >= 0"),
    ("batch_size", True, "batch_size=True: expected an integer >= 1"),
    ("split", no_split, "split: expected at least one task, got none"),
    ("split", wrong_classes, "split: expected different classes from 0 to 9 in every task, got [3, 99] in task 2"),
    ("source", 5, "source=5: expected a function or class that takes train and returns a data set"),
]  # fmt: skip
"""Option, value and message, which names the Python argument."""


def unusable(case: str, train: bool = True) -> Any:
    """Return the training or test set of a case of ``UNUSABLE``."""
    return UNUSABLE[case][0]()[0 if train else 1]


def refusal(**options: Any) -> str:
    """Return the message with which a sequence of two tasks is refused."""
    with pytest.raises(ConfigError) as error:
        TaskSequence(**{"split": split, "tasks": 2, "validation": 0, **options})
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LABELS)
def test_labels_of_no_class_are_refused_in_every_form(case, form, limit):
    labels, text = LABELS[case]
    assert text in refusal(source=lambda train: FORMS[form](X, labels), memory_limit=limit, workers=0)


@pytest.mark.parametrize("form", [Arrays, Items, ItemsWithTargets, FromTorchvision])
@pytest.mark.parametrize("case", OBJECTS)
def test_labels_that_are_no_numbers_are_refused(case, form):
    labels, text = OBJECTS[case]
    assert text in refusal(source=lambda train: form(X, labels))


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_data_is_refused_from_python(case):
    assert UNUSABLE[case][1] in refusal(source=partial(unusable, case))


@pytest.mark.parametrize(("option", "value", "message"), OPTIONS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_value_that_the_data_cannot_use_is_refused(option, value, message):
    other = {"mean": {"std": 1}, "std": {"mean": 0}}.get(option, {})
    assert refusal(**{"source": Digits, option: value, **other}).startswith(message)


@pytest.fixture
def yaml(tmp_path):
    """Return a folder with ``data=bad``, whose source is ``unusable`` in this module."""
    (tmp_path / "more/data").mkdir(parents=True)
    text = (
        "# @package _global_\ndefaults: [/data/base/sequence@data, _self_]\ndata:\n  name: bad\n  tasks: 2\n  validation: 0\n"
        "  source: {_target_: tests.data.test_bad_data.unusable, _partial_: true, case: "
        "}\n"
        "  split: {_target_: clbench.data.split, _partial_: true}\n"
    )
    (tmp_path / "more/data/bad.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "more"


def refused_run(folder: Any, *overrides: str, config_dir: Any = None) -> str:
    """Return the message with which a run is refused, which leaves no folder."""
    with pytest.raises(ConfigError) as error:
        clbench.run([*overrides, "trainer=cpu"], folder, config_dir, quiet=True)
    assert not folder.exists()
    message = str(error.value)
    assert "\n" not in message
    return message


FAST = ("labels half", "labels huge", "no test images", "test shape", "nan pixels")


@pytest.mark.parametrize("case", others_slow(UNUSABLE, *FAST))
def test_unusable_data_is_refused_from_a_yaml(case, yaml, tmp_path):
    message = refused_run(tmp_path / "run", "data=bad", f"data.source.case='{case}'", config_dir=yaml)
    typed = UNUSABLE[case][1].replace("True", "true").replace("None", "null")  # as on the command line
    assert typed in message.replace("data.", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.std=0", "data.mean=0"], "data.std=0: expected standard deviations > 0"),
        (["data.mean=0"], "data.mean=0, data.std=null: expected both or neither"),
        (["data.mean=0", "data.std=[nan]"], "data.std=[nan]: expected a finite number"),
        (["data.source._partial_=false"], "data.source=<clbench.data.toy.Digits object"),
    ],
)
def test_an_option_of_the_data_is_named_as_it_is_typed(options, message, tmp_path):
    assert refused_run(tmp_path / "run", *options).startswith(message)


def test_one_mean_and_deviation_are_used_for_all_channels():
    plain, moved = (
        next(iter(TaskSequence(Digits, chain, scale=16, **options)[0].test_dataloader()[0])).x
        for options in ({}, {"mean": 0, "std": 0.5})
    )
    torch.testing.assert_close(moved, 2 * plain)


def image_folder(root: Any, train: bool = True) -> ImageFolder:
    return ImageFolder(root / ("train" if train else "test"))


def write_folders(root: Any, **classes: str) -> None:
    for part, names in classes.items():
        for name in names.split():
            (root / part / name).mkdir(parents=True)
            for row in range(4):
                Image.fromarray(pixels(4, 6, 6, 3)[row]).save(root / part / name / f"{row}.png")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"train": "cat dog fox", "test": "dog fox"}, "got 'dog' as class 1 and 0. Use the same subfolders in both."),
        (
            {"train": "cat dog", "test": "cat dog fox"},
            "got 'fox' as class None and 2. Use the same subfolders in both.",
        ),
        ({"train": "cat dog"}, "data set image_folder not found"),
    ],
)
def test_folders_with_other_classes_are_refused(classes, message, tmp_path):
    """ImageFolder numbers the subfolders of each part separately, so a missing one would exchange classes."""
    write_folders(tmp_path, **classes)
    assert message in refusal(source=partial(image_folder, tmp_path))


def test_a_damaged_image_file_is_named(tmp_path):
    write_folders(tmp_path, train="cat dog", test="cat dog")
    (tmp_path / "train/dog/1.png").write_bytes(b"damaged")
    message = refusal(source=partial(image_folder, tmp_path))
    assert "cannot identify image file" in message and "1.png" in message


def test_a_streamed_data_set_with_other_targets_is_refused():
    """In memory, the labels of the items are used."""
    assert TaskSequence(lambda train: OtherTargets(X, [y - 1 for y in GOOD]), chain, validation=0)[0].examples == 20
    message = refusal(source=lambda train: OtherTargets(X, GOOD), memory_limit=0, workers=0)
    assert "expected dataset[i] with the label targets[i], got 1 and 0 for i=0. Correct targets, or remove" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_image_of_another_shape_is_one_line(workers):
    """The data set is read during training, because it has targets, so its images are not read before."""
    images = [*varying(1), *pixels(18), pixels(1, 5, 5)[0]]
    sequence = TaskSequence(lambda train: ItemsWithTags(images), chain, memory_limit=0, workers=workers, validation=0)
    with pytest.raises(ConfigError, match="^data set .lambda.: expected images of one shape") as error:
        list(sequence[0].train_dataloader())
    assert "\n" not in str(error.value)


def test_a_class_with_validation_examples_only_is_refused():
    labels = [0] * 19 + [1]
    messages = []
    for seed in range(20):
        try:
            TaskSequence(lambda train: Arrays(X, labels), chain, seed=seed, validation=0.3)
        except ConfigError as error:
            messages.append(str(error))
    expected = "validation=0.3: expected training examples of every class, but class 1 of task 1 has only validation"
    assert messages and all(message.startswith(expected) for message in messages)
