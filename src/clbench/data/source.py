"""Open, download and read torchvision-like data sets. Only one process downloads at a time."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from clbench.data.conversion import Conversion
from clbench.data.fingerprint import FROM_ITEMS, LABELS_ONLY, combine, fingerprint
from clbench.data.images import Images, Streamed, in_memory_or_streamed
from clbench.data.items import KEEP, read_examples
from clbench.data.labels import count_classes
from clbench.data.targets import LABEL, count_outputs, kind_of
from clbench.errors import ConfigError, DataError

OFFLINE = "The data sets data=permuted_digits and data=split_digits need no download"


def dataset_name(factory: Callable[..., Any]) -> str:
    """Return the name of the class or function in ``factory``, for a wrapper such as ``Padded`` that of the wrapped data set."""
    inner = factory.func if isinstance(factory, partial) else factory
    if isinstance(factory, partial) and "dataset" in factory.keywords:
        return dataset_name(factory.keywords["dataset"])
    return getattr(inner, "__name__", str(inner))


def open_dataset(factory: Callable[..., Any], train: bool, download: bool = True) -> Any:
    """Return the training or test set that ``factory`` creates.

    The first attempt does not download. If it fails, the second attempt waits until no other process is downloading into the
    same root, because that process may have completed the files. Only the third attempt downloads.

    Args:
        factory: Function that takes ``train`` (or ``split``: train, test) and, if it can download, ``download`` and ``root``.
            Usually a partial of a class of torchvision.datasets with its ``root``.
        train: Whether to return the training set instead of the test set.
        download: Whether to make the second and third attempt.

    Raises:
        ConfigError: The data set is missing and cannot be downloaded, or it is unreadable.
    """
    if not callable(factory):
        raise DataError(
            f"source={factory}: expected a function or class that takes train and returns a data set. In a yaml, use "
            "_target_ with _partial_: true."
        )
    name = dataset_name(factory)
    keywords = factory.keywords if isinstance(factory, partial) else {}
    root = keywords.get("root")
    arguments, downloads = _arguments(factory, name, keywords, train)
    try:
        return factory(**arguments)
    except ConfigError:
        raise
    except Exception as error:
        first = error
    if root is None or not download:
        if not _missing(first):
            raise _unreadable(name, root, first) from first
        raise DataError(
            f"data set {name} not found, and there is no root folder to download it to ({_reason(first)}). Set root=<folder>."
        ) from first
    try:
        folder = Path(root).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock").acquire()
    except OSError as error:  # the folder is not writable, so no process can download to it
        raise _not_there(name, root, error) if _missing(first) else _unreadable(name, root, first) from error
    with lock:
        try:
            return factory(**arguments)
        except Exception as error:
            if not _missing(error):
                raise _unreadable(name, root, error) from error
        try:
            return factory(**(arguments | downloads))
        except Exception as error:
            raise _not_there(name, root, error) from error


def _arguments(
    factory: Callable[..., Any], name: str, keywords: dict[str, Any], train: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that select the training or test set, and those that also download it."""
    parameters = inspect.signature(factory).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    stays, downloads = ({"download": d} if "download" in parameters or anything else {} for d in (False, True))
    if "train" in parameters or (anything and ("split" in keywords or "split" not in parameters)):
        return {"train": train, **stays}, downloads
    if "split" in parameters:
        return {"split": "train" if train else "test", **stays}, downloads
    raise DataError(
        f"data set {name} has no train or split argument, so its test set cannot be loaded. Wrap it in a function "
        "(train, download) that returns the data set."
    )


def _missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, RuntimeError) and "not found" in str(error).lower()
    )


def _not_there(name: str, root: str, error: Exception) -> DataError:
    return DataError(
        f"data set {name} is not in {root} and could not be downloaded ({_reason(error)}). Copy it there, set data_dir, "
        f"or connect to the network. {OFFLINE}."
    )


def _unreadable(name: str, root: str | None, error: Exception) -> DataError:
    if root is None:
        return DataError(f"data set {name} cannot be opened ({_reason(error)}). Repair it, or choose another source.")
    return DataError(
        f"data set {name} in {root} cannot be read, a file may be truncated ({_reason(error)}). Delete it, and the next run "
        "downloads it again."
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        name: Name for messages.
        train, test: Training and test examples.
        classes: Number of classes. If the targets are not one label per example, the number of outputs.
        fingerprint: Fingerprints of ``train`` and ``test``.
        kind: Kind of the targets, see ``clbench.data.targets``.
        is_bytes: Whether the inputs are bytes of text.
    """

    name: str
    train: Images | Streamed
    test: Images | Streamed
    classes: int
    fingerprint: dict[str, str] = field(default_factory=dict)
    kind: str = LABEL
    is_bytes: bool = False


def read(
    factory: Callable[..., Any],
    convert: Conversion = KEEP,
    memory_limit: int | None = None,
    workers: int | None = None,
    loss: str = "cross_entropy",
) -> Source:
    """Return the training and test set of a torchvision-like data set, read into memory or streamed.

    Args:
        factory: Function that creates the data set, see ``open_dataset``.
        convert: Conversion of images.
        memory_limit, workers: See ``in_memory_or_streamed``.
        loss: Name of the loss, which decides what the targets mean.

    Raises:
        ConfigError: The data set is missing and cannot be downloaded, is unreadable, or does not contain inputs of one shape
            with targets that fit the loss.
    """
    name = dataset_name(factory)
    datasets = [open_dataset(factory, part) for part in (True, False)]
    _check_folders(name, *datasets)
    names = (name, f"{name} (test)")
    examples = [read_examples(d, text, convert, loss) for d, text in zip(datasets, names, strict=True)]
    if examples[0].shape != examples[1].shape:
        raise DataError(
            f"data set {name}: expected test images of the shape of the training images {examples[0].shape}, got "
            f"{examples[1].shape}. Set resize=[H,W] for equal sizes, or channels=1 or 3 for equal channels."
        )
    train, test = (in_memory_or_streamed(each, memory_limit, workers) for each in examples)
    kind = kind_of(train.y, loss)
    declared = getattr(datasets[0], "outputs", None)
    if kind == LABEL and declared is None:
        classes = count_classes(train.y, test.y, name)
    else:
        classes = count_outputs(train.y, test.y, loss, declared, name)
    pairs = zip(PARTS, examples, (train.y, test.y), strict=True)
    prints = {part: fingerprint(each, y if each.targets is None else each.targets) for part, each, y in pairs}
    if any(LABELS_ONLY in text for text in prints.values()):
        warnings.warn(
            f"data set {name}: its images change each time they are read, so the run cannot be repeated, and the fingerprint "
            "covers the labels only. Set augment=... instead of random changes in the data set.",
            stacklevel=2,
        )
    return Source(name, train, test, classes, prints, kind, getattr(datasets[0], "is_bytes", False))


PARTS = ("train", "test")
"""Parts of a data set that have a fingerprint. The validation examples of a run are drawn from ``train``."""


def _check_folders(name: str, train: Any, test: Any) -> None:
    """Raise ConfigError if the numbers of classes of folders differ, because ``ImageFolder`` numbers each part separately."""
    first, second = (getattr(each, "class_to_idx", None) for each in (train, test))
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return
    for label, number in second.items():
        if first.get(label) != number:
            raise DataError(
                f"data set {name}: expected classes with the same numbers in the training and test set, got {label!r} as class "
                f"{first.get(label)} and {number}. Use the same subfolders in both."
            )


def current_fingerprint(
    source: Callable[..., Any] | Sequence[Callable[..., Any]],
    convert: Conversion = KEEP,
    loss: str = "cross_entropy",
) -> dict[str, str] | None:
    """Return what ``TaskSequence(source, ...).fingerprint`` is now, in about the time of opening the files.

    Returns:
        None if this would download files, or read the labels of many items one by one.

    Raises:
        ConfigError: The data set is missing or unusable.
    """
    found = []
    for factory in source if isinstance(source, Sequence) else [source]:
        prints = {}
        for part in PARTS:
            examples = read_examples(
                open_dataset(factory, part == "train", download=False), dataset_name(factory), convert, loss
            )
            if examples.targets is None and len(examples) > FROM_ITEMS:
                return None
            prints[part] = fingerprint(examples, examples.labels())
        found.append(prints)
    return combine(found)
