"""Fingerprints of data: hashes of the labels and of a fixed sample of the images, which show that the data have changed.

A fingerprint identifies a data set before it is split into tasks: the images before transforms and resizing, in the order of the
data set. So it does not depend on the seed, the tasks, the memory limit or the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clbench.data.items import Arrays, Examples, Items
from clbench.errors import OtherRun
from clbench.seeding import random_states, set_random_states

FROM_ARRAYS, FROM_ITEMS = 1000, 100
"""Number of images in the sample, evenly spaced. Reading an item can take milliseconds, for example to decode a JPEG file."""

READ_TWICE = 10
"""Number of items that are read twice, to notice images that change each time."""

LABELS_ONLY = " (labels only)"
"""Text after the fingerprint of a data set whose images change each time they are read."""

TRANSFORMS = {
    "transform": lambda image: image,
    "target_transform": lambda target: target,
    "transforms": lambda image, target: (image, target),
}
"""Attributes of torchvision data sets with transforms -> the transform that changes nothing."""


def fingerprint(examples: Examples, labels: Tensor) -> str:
    """Return 16 hex digits that identify the examples, with ``LABELS_ONLY`` if the images cannot be read twice alike.

    Args:
        examples: Training or test set.
        labels: Targets of all examples (N, ...).

    >>> from clbench.data.items import read_examples
    >>> from clbench.data.toy import BitOperation
    >>> a, b = (read_examples(BitOperation(op), op) for op in ("and", "or"))
    >>> fingerprint(a, a.labels()) == fingerprint(b, b.labels())
    False
    """
    digest = sha256(labels.numpy().astype("<f4" if labels.is_floating_point() else "<i8").tobytes())
    if isinstance(examples, Items):
        images = images_of(examples, evenly_spaced(len(examples), FROM_ITEMS))
    else:
        assert isinstance(examples, Arrays)
        images = list(examples.data[evenly_spaced(len(examples), FROM_ARRAYS)])
    for image in images or []:
        digest.update(f"{image.dtype.str} {image.shape} ".encode() + image.tobytes())
    return digest.hexdigest()[:16] + (LABELS_ONLY if images is None else "")


def evenly_spaced(number: int, at_most: int) -> list[int]:
    """Return the indices of at most ``at_most`` of ``number`` examples, with the first and the last one.

    >>> evenly_spaced(3, at_most=5), evenly_spaced(9, at_most=3)
    ([0, 1, 2], [0, 4, 8])
    """
    size = min(number, at_most)
    return [k * (number - 1) // max(size - 1, 1) for k in range(size)]


def images_of(examples: Items, rows: Sequence[int]) -> list[np.ndarray] | None:
    """Return images before the transforms of the data set, None if they change each time they are read.

    The states of the global random generators do not change.
    """

    def read(rows: Sequence[int], item: Callable[[int], Any]) -> list[np.ndarray]:
        return [np.asarray(item(row)[0]) for row in rows]

    states = random_states(torch.device("cpu"))
    try:
        try:
            item = untransformed(examples.dataset).__getitem__
            images = read(rows, item)
        except Exception:  # code of the user may need its transforms; examples.item reports an error that remains
            item = examples.item
            images = read(rows, item)
        again = read(rows[:READ_TWICE], item)
    finally:
        set_random_states(states, torch.device("cpu"))
    is_same = all(a.dtype != object and np.array_equal(a, b) for a, b in zip(images, again, strict=False))
    return images if is_same else None


def untransformed(dataset: Any) -> Any:
    """Return a copy of a data set that returns its images and labels without transforms, as far as torchvision names them."""
    raw = copy(dataset)
    attributes = getattr(raw, "__dict__", {})
    for name, identity in TRANSFORMS.items():
        if callable(attributes.get(name)):
            setattr(raw, name, identity)
    if isinstance(attributes.get("dataset"), Dataset):  # a Subset
        raw.dataset = untransformed(raw.dataset)
    return raw


def combine(fingerprints: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the fingerprints of the parts of several data sets, in their order.

    >>> combine([{"train": "0123456789abcdef"}])
    {'train': '0123456789abcdef'}
    """
    if len(fingerprints) == 1:
        return dict(fingerprints[0])
    joined = {part: " ".join(each[part] for each in fingerprints) for part in fingerprints[0]}
    marks = {part: LABELS_ONLY if LABELS_ONLY in text else "" for part, text in joined.items()}
    return {part: sha256(text.encode()).hexdigest()[:16] + marks[part] for part, text in joined.items()}


def check_same_data(stored: Mapping[str, str] | None, current: Mapping[str, str], path: Path) -> None:
    """Raise OtherRun if the results at ``path`` are of other data than the current ones.

    Args:
        stored: Fingerprints of the results by part. None (results of an earlier version) raises nothing.
        current: Fingerprints of the current data by part.
        path: Folder or file of the results.
    """
    changed = [part for part in current if stored and part in stored and stored[part] != current[part]]
    if changed:
        pairs = ", ".join(f"{part} {(stored or {})[part]} and {current[part]}" for part in changed)
        raise OtherRun(
            f"{path} contains results on other data, because the contents of the data set have changed (fingerprints, stored and "
            f"now: {pairs}). Restore the data, set data_dir to the folder that contains it, or try another output_dir."
        )
