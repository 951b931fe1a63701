"""Read a data set as images (C, H, W), tokens (T,) or rows of a table (F,), from its arrays if it has them, else item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clbench.data.columns import image_and_label
from clbench.data.conversion import Conversion
from clbench.data.labels import as_array
from clbench.data.targets import read_targets
from clbench.errors import DataError

CHUNK = 1000
"""Number of images that are converted at a time."""

KEEP = Conversion()
"""The conversion that changes nothing."""

COMPARED = 10
"""Number of items whose labels are compared with the list of labels, before the list is used without reading the items."""

WIDE = ("I", "F")
"""First letters of the PIL modes with more than 8 bits per pixel, which a conversion to RGB would clip."""


class Examples(Protocol):
    """Map-style data set of inputs of one ``shape``: uint8 images (C, H, W), integer tokens (T,), or rows of floats (F,)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def targets(self) -> Tensor | None:
        """All targets (N, ...), None if every item has to be read for them."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> tuple[Tensor, Any]: ...

    def labels(self) -> Tensor:
        """Return all targets (N, ...)."""

    def whole(self) -> tuple[Tensor, Tensor]:
        """Return all inputs (N, ...) and targets (N, ...)."""


def read_examples(dataset: Any, name: str, convert: Conversion = KEEP, loss: str = "cross_entropy") -> Examples:
    """Return the examples of ``dataset``, with every image converted.

    A data set with arrays ``data`` and ``targets`` (or ``labels``) and without a transform is read from these arrays. So are a
    dictionary of arrays, and a TensorDataset of tokens or of a table. Any other data set is read item by item. An item is a pair
    of an image (PIL, array or tensor) and a target, or a dictionary that contains both under a known name (``columns``), as in a
    Hugging Face data set.

    Args:
        dataset: Map-style data set, or a dictionary of arrays.
        name: Name for messages.
        convert: Conversion of images.
        loss: Name of the loss, which decides what the targets mean, see ``targets``.

    Raises:
        ConfigError: The data set does not contain inputs of one shape with a target each, or it is empty.
    """
    if isinstance(dataset, Mapping):
        image, label = image_and_label(dataset, name)
        return _checked(Arrays(as_array(dataset[image]), dataset[label], name, convert, loss), name, convert)
    if isinstance(tensors := getattr(dataset, "tensors", None), tuple) and len(tensors) == 2 and tensors[0].ndim == 2:
        return _checked(Arrays(*tensors, name, convert, loss), name, convert)
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if targets is None and isinstance(names := getattr(dataset, "column_names", None), list):  # of Hugging Face
        targets = list(dataset[image_and_label(names, name)[1]])
    data = getattr(dataset, "data", None)
    of_images, of_labels = (getattr(dataset, kind, None) for kind in ("transform", "target_transform"))
    examples: Examples
    if isinstance(data, np.ndarray | Tensor) and targets is not None and of_images is None and of_labels is None:
        examples = Arrays(data, targets, name, convert, loss)
    else:
        examples = Items(dataset, targets if of_labels is None else None, name, convert, loss)
    return _checked(examples, name, convert)


def _checked(examples: Examples, name: str, convert: Conversion) -> Examples:
    if min(examples.shape) < 1:
        raise DataError(f"data set {name}: expected images (C, H, W) with pixels, got the shape {examples.shape}.")
    convert.check(examples.shape, name)
    return examples


def _refuse_empty(number: int, name: str) -> None:
    if number == 0:
        raise DataError(f"data set {name}: expected at least one image, got none. Check the files of the data set.")


class Arrays:
    """Examples from an array and a list of targets.

    Args:
        data: Images (N, H, W), (N, H, W, C) or (N, C, H, W), uint8; tokens (N, T), integers; or a table (N, F), floats.
        targets: Targets of all examples.
        name: Name for messages.
        convert: Conversion of images.
        loss: Name of the loss.
    """

    def __init__(
        self,
        data: np.ndarray | Tensor,
        targets: Any,
        name: str = "",
        convert: Conversion = KEEP,
        loss: str = "cross_entropy",
    ) -> None:
        self.data, self.convert = as_array(data), convert
        if self.data.ndim == 2 and self.data.dtype.kind in "iuf":
            self.data = _tokens_or_table(self.data, name)
        elif self.data.dtype != np.uint8 or self.data.ndim not in (3, 4):
            raise DataError(
                f"data set {name}: expected uint8 images (N, H, W) or (N, H, W, C), integer tokens (N, T) or a table of floats "
                f"(N, F), got {self.data.dtype} data {self.data.shape}. Convert pixels in [0, 1] with "
                "(255 * data).round().astype('uint8')."
            )
        _refuse_empty(len(self.data), name)
        self.shape: tuple[int, ...] = tuple(self._inputs(slice(0, 1)).shape[1:])
        self.targets = read_targets(targets, len(self.data), name, loss, positions_of(self.shape, self.data.dtype.kind))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self._inputs(slice(row, row + 1))[0], self.targets[row]

    def labels(self) -> Tensor:
        return self.targets

    def whole(self) -> tuple[Tensor, Tensor]:
        if self.convert == KEEP:
            return self._inputs(slice(None)), self.targets
        chunks = [self._inputs(slice(start, start + CHUNK)) for start in range(0, len(self), CHUNK)]
        return torch.cat(chunks), self.targets

    def _inputs(self, rows: slice) -> Tensor:
        data = self.data[rows]
        x = torch.from_numpy(data if data.flags.writeable else data.copy())
        if x.ndim == 2:
            return x
        if x.ndim == 3:
            x = x[:, None]
        elif x.shape[-1] <= 4 or x.shape[1] > 4:  # channels last, unless only the first dimension can be channels
            x = x.permute(0, 3, 1, 2)
        return self.convert(x.contiguous())


class Items:
    """Examples of a data set of images that can only be read item by item."""

    def __init__(
        self,
        dataset: Any,
        targets: Any = None,
        name: str = "",
        convert: Conversion = KEEP,
        loss: str = "cross_entropy",
    ) -> None:
        self.dataset, self.name, self.convert, self.loss = dataset, name, convert, loss
        try:
            self._length = len(dataset)
        except TypeError as error:
            raise DataError(f"data set {name}: expected a data set with a length, got {error}.") from error
        _refuse_empty(self._length, name)
        self.shape: tuple[int, ...] = tuple(self._image(self.item(0)[0], 0).shape)
        self.targets = None if targets is None else self._targets(targets)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> tuple[Tensor, Any]:
        image, label = self.item(row)
        x = self._image(image, row)
        if x.shape != self.shape:
            raise DataError(
                f"data set {self.name}: expected images of one shape, got {self.shape} for image 0 and {tuple(x.shape)} for "
                f"image {row}. Set resize=[H,W] for equal sizes, or channels=1 or 3 for equal channels."
            )
        return x, label

    def item(self, row: int) -> tuple[Any, Any]:
        """Return the image and the label of an example as the data set returns them.

        Raises:
            ConfigError: The item cannot be read, or it is not a pair.
        """
        try:
            found = self.dataset[row]
            if isinstance(found, Mapping):
                found = [found[column] for column in image_and_label(found, self.name)]
            image, label, *_ = found
        except DataError:
            raise
        except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = f"KeyError {reason}" if isinstance(error, KeyError) else reason
            raise DataError(
                f"data set {self.name}: expected a data set with a length and dataset[i] = (image, label), got {reason} for "
                f"i={row}. Repair the data set, or leave out this image."
            ) from error
        return image, label

    def labels(self) -> Tensor:
        if self.targets is not None:
            for row in range(min(len(self), COMPARED)):
                if not np.array_equal(np.ravel(label := self.item(row)[1]), np.ravel(self.targets[row])):
                    raise DataError(
                        f"data set {self.name}: expected dataset[i] with the label targets[i], got {label!r} and "
                        f"{self.targets[row]} for i={row}. Correct targets, or remove this attribute of the data set."
                    )
            return self.targets
        return self._targets([self[row][1] for row in range(len(self))])

    def whole(self) -> tuple[Tensor, Tensor]:
        x, labels = torch.empty(len(self), *self.shape, dtype=torch.uint8), []
        for row in range(len(self)):
            x[row], label = self[row]
            labels.append(label)
        return x, self._targets(labels)

    def _targets(self, values: Any) -> Tensor:
        if isinstance(values, list):
            values = [np.asarray(value) if hasattr(value, "convert") else value for value in values]  # masks of PIL
        return read_targets(values, len(self), self.name, self.loss, positions_of(self.shape))

    def _image(self, image: Any, row: int) -> Tensor:
        if hasattr(image, "convert") and image.mode not in ("L", "RGB") and not image.mode.startswith(WIDE):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")  # a palette, transparency or single bits
        x = image if isinstance(image, Tensor) else self._tensor(image, row)
        if x.ndim == 2:
            x = x[None]
        if x.is_floating_point() and x.ndim == 3 and x.numel() and x.min() >= 0 and x.max() <= 1:
            x = x.mul(255).round().to(torch.uint8)
        if x.dtype != torch.uint8 or x.ndim != 3:
            raise self._not_an_image(f"{x.dtype} {tuple(x.shape)}{_range(x)}", row)
        return self.convert(x[None])[0]

    def _tensor(self, image: Any, row: int) -> Tensor:
        """Return a PIL image or an array (H, W) or (H, W, C) as a tensor (H, W) or (C, H, W)."""
        try:
            x = torch.from_numpy(np.array(image))
        except (TypeError, ValueError) as error:  # text, objects, types that torch does not have, nested lists
            raise self._not_an_image(type(image).__name__, row) from error
        return x.permute(2, 0, 1) if x.ndim == 3 else x

    def _not_an_image(self, found: str, row: int) -> DataError:
        return DataError(
            f"data set {self.name}: expected an image (H, W) or with channels, of uint8 pixels or floats in [0, 1], got {found} "
            f"for image {row}. Normalise with mean=... and std=... instead of a transform."
        )


def positions_of(shape: Sequence[int], kind: str = "u") -> tuple[int, ...]:
    """Return the shape of the positions of an input that may have a label each: (T,) of tokens, (H, W) of images.

    The rows of a table, whose values have the ``kind`` f of NumPy, have no positions.
    """
    return () if kind == "f" else tuple(shape[-2:])


def _tokens_or_table(data: np.ndarray, name: str) -> np.ndarray:
    """Return tokens (N, T), or a table (N, F) as float32.

    Raises:
        ConfigError: A token is negative, or a number is not finite.
    """
    if data.dtype.kind == "f":
        if not np.isfinite(data).all():
            raise DataError(f"data set {name}: expected finite numbers, got {data[~np.isfinite(data)][0]}.")
        return data.astype(np.float32)
    if data.min(initial=0) < 0:
        raise DataError(f"data set {name}: expected tokens >= 0, got {data.min()}. Convert a table to floats.")
    return data if data.dtype == np.uint8 else data.astype(np.int64)


def _range(x: Tensor) -> str:
    """Return the range of the pixels as text, which shows nan."""
    return f" from {x.min():.4g} to {x.max():.4g}" if x.is_floating_point() and x.numel() else ""
