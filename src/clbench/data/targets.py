"""Targets of a data set: one label, several labels or numbers per example, or a label per token or pixel.

What targets mean follows from the loss and their shape:

cross_entropy         One label (N,), or a label for each token (N, T) or pixel (N, H, W). -100 marks positions without a label.
binary_cross_entropy  One label (N,) of two classes, or several labels (N, K), each 0 or 1.
mse                   Numbers (N, K), or (N,) for one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clbench.data.labels import as_array, class_labels
from clbench.errors import DataError

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse")

LABEL, LABELS, POSITIONS, NUMBERS = KINDS = ("label", "labels", "positions", "numbers")
"""Kinds of targets."""

WHAT = {
    LABEL: "one label per example",
    LABELS: "several labels per example",
    POSITIONS: "a label per token or pixel",
    NUMBERS: "numbers",
}
"""Meaning of each kind in text."""

NO_LABEL = -100
"""Target of a position that does not count, as in ``torch.nn.functional.cross_entropy``."""


def kind_of(targets: Tensor, loss: str) -> str:
    """Return the kind of targets that ``read_targets`` has returned.

    >>> kind_of(torch.zeros(4, 8, dtype=torch.int64), "cross_entropy")
    'positions'
    """
    if loss == "mse":
        return NUMBERS
    if targets.ndim == 1:
        return LABEL
    return LABELS if loss == "binary_cross_entropy" else POSITIONS


def read_targets(values: Any, examples: int, name: str, loss: str, positions: Sequence[int] = ()) -> Tensor:
    """Return the targets of all examples as a tensor: int64, or float32 (N, K) for numbers.

    Args:
        values: Tensor, array or list of N targets.
        examples: Number of examples N.
        name: Name of the data set for messages.
        loss: Name of the loss.
        positions: Shape of the positions of an input that may have a label each: (T,) for tokens, (H, W) for images.

    Raises:
        ConfigError: The targets do not fit the loss or the number of examples.

    >>> read_targets([0.5, 2.0], 2, "toy", "mse").shape
    torch.Size([2, 1])
    """
    if loss == "mse":
        return _numbers(values, examples, name)
    try:
        array = as_array(values)
    except (ValueError, TypeError, RuntimeError):  # of several shapes or types
        return class_labels(values, examples, name)
    shape = array.shape
    if len(shape) == 2 and loss == "binary_cross_entropy" and len(array) == examples and array.dtype.kind in "iubf":
        return _several_labels(array, name)
    if len(shape) > 1 and loss == "cross_entropy" and positions and len(shape) == len(positions) + 1:
        return _position_labels(array, examples, name, positions)
    return class_labels(array, examples, name)


def count_outputs(train: Tensor, test: Tensor, loss: str, declared: int | None, name: str) -> int:
    """Return the number of outputs: of numbers, of several labels, of classes of a position, or of classes that are declared.

    Args:
        train, test: Targets.
        loss: Name of the loss.
        declared: Number of classes that the data set declares in its attribute ``outputs``, None for the largest label plus one.
        name: Name of the data set for messages.

    Raises:
        ConfigError: A label is not below the declared number, or the test targets have another shape.
    """
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"data set {name}: expected test targets of the shape of the training targets {tuple(train.shape[1:])}, got "
            f"{tuple(test.shape[1:])}. Make them equal."
        )
    if kind_of(train, loss) in (LABELS, NUMBERS):
        return train.shape[1]
    labels = torch.cat([train.unique(), test.unique()]).unique()
    labels = labels[labels != NO_LABEL]
    if not len(labels):
        raise DataError(f"data set {name}: expected at least one label, got only {NO_LABEL}.")
    largest = int(labels.max())
    if declared is None and largest + 1 != len(labels):
        raise DataError(
            f"data set {name}: expected labels 0 to {len(labels) - 1} for {len(labels)} classes of a position, got {largest}. "
            f"Use mask > 0 for a mask of 0 and 255, {NO_LABEL} for positions without a label, or declare the number of classes "
            "in the attribute outputs."
        )
    if declared is not None and largest >= declared:
        raise DataError(f"data set {name}: expected labels below outputs={declared}, got {largest}. Correct outputs.")
    return largest + 1 if declared is None else declared


def _numbers(values: Any, examples: int, name: str) -> Tensor:
    rule = f"data set {name}: expected a number or a list of numbers (N, K) per example with loss=mse, got"
    try:
        array = np.asarray(as_array(values), dtype=np.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{rule} {' '.join(str(error).split())}. Convert the targets to numbers.") from error
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != examples or not array.shape[1]:
        raise DataError(f"{rule} targets of shape {array.shape} for {examples} examples. Reshape them to (N, K).")
    if not np.isfinite(array).all():
        raise DataError(f"{rule} {array[~np.isfinite(array)][0]}. Leave out examples without a value.")
    return torch.from_numpy(array.copy())


def _several_labels(array: np.ndarray, name: str) -> Tensor:
    if (is_wrong := (array != 0) & (array != 1)).any():
        wrong = array[is_wrong].flat[0]
        raise DataError(
            f"data set {name}: expected labels 0 or 1 of shape (N, K) with loss=binary_cross_entropy, got {wrong}. Give one "
            "column per label."
        )
    return torch.from_numpy(array.astype(np.int64))


def _position_labels(array: np.ndarray, examples: int, name: str, positions: Sequence[int]) -> Tensor:
    if array.shape != (examples, *positions) or array.dtype.kind not in "iub":
        raise DataError(
            f"data set {name}: expected integer labels of shape {(examples, *positions)}, one for each position of an example, "
            f"or one label per example (N,), got {array.dtype} {array.shape}. Masks have the size of their images and are not "
            "resized. Use loss=binary_cross_entropy for several labels, loss=mse for numbers."
        )
    wrong = array[(array < 0) & (array != NO_LABEL)] if array.dtype.kind == "i" else array[:0]
    if wrong.size:
        raise DataError(
            f"data set {name}: expected labels >= 0 for each position, or {NO_LABEL} for none, got {wrong.flat[0]}. Number the "
            "classes 0, 1, ...."
        )
    return torch.from_numpy(array.astype(np.int64))
