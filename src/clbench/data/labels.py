"""Check the labels of a data set: one integer 0, 1, ... per example, and every class with training examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clbench.errors import DataError

NUMBER = "Number the classes 0, 1, ... in the data set, in the same way in the training and test set"


def class_labels(labels: Any, examples: int, name: str) -> Tensor:
    """Return the labels as a tensor (N,), int64.

    Args:
        labels: Tensor, array or list of integers of any type (N,).
        examples: Number of images N.
        name: Name of the data set for messages.

    Raises:
        ConfigError: The labels are not one integer >= 0 per image.

    >>> class_labels([1, 0], examples=2, name="toy")
    tensor([1, 0])
    """
    rule = f"data set {name}: expected one integer label 0, 1, ... per image, got"
    try:
        values = as_array(labels)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, or values of several kinds
        raise DataError(f"{rule} labels of several shapes or types. {NUMBER}.") from error
    if values.ndim != 1:
        hint = "Use (N,)"
        if values.ndim == 2 and values.shape[1] > 1:
            hint = "Use labels.argmax(1) for one-hot labels, loss=binary_cross_entropy for several labels, loss=mse for numbers"
        elif values.dtype.kind == "f":
            hint = "Use loss=mse for numbers"
        raise DataError(f"{rule} labels of shape {values.shape}. {hint}.")
    if len(values) != examples:
        raise DataError(f"{rule} {len(values)} labels for {examples} images. Make their numbers equal.")
    if values.dtype.kind not in "iu":
        not_whole = values[~np.isfinite(values) | (np.floor(values) != values)] if values.dtype.kind == "f" else values
        more = ", or use loss=mse for numbers" if values.dtype.kind == "f" else ""
        raise DataError(f"{rule} {[*not_whole.tolist(), *values.tolist()][0]!r} ({values.dtype}). {NUMBER}{more}.")
    if values.max(initial=0) > torch.iinfo(torch.int64).max:
        raise DataError(f"{rule} {values.max()}. {NUMBER}.")
    return torch.from_numpy(values.astype(np.int64))


def as_array(values: Any) -> np.ndarray:
    """Return a tensor on any device, an array or a list as an array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def count_classes(train: Tensor, test: Tensor, name: str) -> int:
    """Return the number of classes C of a data set with training and test labels (N,).

    Raises:
        ConfigError: The training labels are not 0 to C-1, or a test label does not occur among them.
    """
    classes = len(train.unique())
    for part, labels in (("training", train), ("test", test)):
        wrong = labels[(labels < 0) | (labels >= classes)].unique().tolist()
        if wrong:
            raise DataError(
                f"data set {name}: expected labels from 0 to {classes - 1} for the {classes} classes of the training set, got "
                f"{wrong[:5]} in the {part} set. {NUMBER}, without gaps."
            )
    return classes
