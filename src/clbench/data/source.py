"""Open, download and read torchvision-like data sets. Only one process downloads at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from clbench.data.images import Images, Streamed, in_memory_or_streamed
from clbench.data.items import read_examples
from clbench.errors import ConfigError, DataError

OFFLINE = "The data sets data=permuted_digits and data=split_digits need no download"


def dataset_name(factory: Callable[..., Any]) -> str:
    """Return the name of the class or function in ``factory``, for a wrapper such as ``Padded`` that of the wrapped data set."""
    inner = factory.func if isinstance(factory, partial) else factory
    if isinstance(factory, partial) and "dataset" in factory.keywords:
        return dataset_name(factory.keywords["dataset"])
    return getattr(inner, "__name__", str(inner))


def open_dataset(factory: Callable[..., Any], train: bool) -> Any:
    """Return the training or test set that ``factory`` creates.

    The first attempt does not download. If it fails, the second attempt waits until no other process is downloading into the
    same root, because that process may have completed the files. Only the third attempt downloads.

    Args:
        factory: Function that takes ``train`` (or ``split``: train, test) and, if it can download, ``download`` and ``root``.
            Usually a partial of a class of torchvision.datasets with its ``root``.
        train: Whether to return the training set instead of the test set.

    Raises:
        ConfigError: The data set is missing and cannot be downloaded, or it is unreadable.
    """
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
    if root is None:
        if not _missing(first):
            raise _unreadable(name, root, first) from first
        raise DataError(f"data set {name} not found, and there is no root folder to download it to. Set root=<folder>.")
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
    return DataError(
        f"data set {name} in {root} cannot be read, a file may be truncated ({_reason(error)}). Delete it, and the next run "
        "downloads it again."
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@dataclass(frozen=True)
class Source:
    """A data set: its name, training and test images, and number of classes."""

    name: str
    train: Images | Streamed
    test: Images | Streamed
    classes: int


def read(
    factory: Callable[..., Any],
    resize: int | Sequence[int] | None = None,
    memory_limit: int | None = None,
    workers: int | None = None,
) -> Source:
    """Return the training and test set of a torchvision-like data set, read into memory or streamed.

    Args:
        factory: Function that creates the data set, see ``open_dataset``.
        resize: Side, or height and width, to which every image is resized.
        memory_limit, workers: See ``in_memory_or_streamed``.

    Raises:
        ConfigError: The data set is missing and cannot be downloaded, is unreadable, or does not contain images of one shape
            with labels 0, 1, ....
    """
    name = dataset_name(factory)
    train, test = (
        in_memory_or_streamed(read_examples(open_dataset(factory, part), name, resize), memory_limit, workers)
        for part in (True, False)
    )
    classes = int(train.y.max()) + 1
    for part, y in (("training", train.y), ("test", test.y)):
        wrong = y[(y < 0) | (y >= classes)].unique().tolist()
        if wrong:
            raise DataError(
                f"data set {name}: expected labels 0, 1, ... that occur in the training set, got {wrong[:5]} in the {part} set. "
                "Map them in the data set."
            )
    return Source(name, train, test, classes)
