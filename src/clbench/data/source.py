"""Data sets in torchvision's form: opened or downloaded by one process at a time, and read as training and test images."""

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

OFFLINE = "data=permuted_digits and data=split_digits run offline"


def dataset_name(factory: Callable[..., Any]) -> str:
    """The name of the class, or function, behind ``factory``; of a wrapper (``Padded``) that of the data set it wraps."""
    inner = factory.func if isinstance(factory, partial) else factory
    if isinstance(factory, partial) and "dataset" in factory.keywords:
        return dataset_name(factory.keywords["dataset"])
    return getattr(inner, "__name__", str(inner))


def open_dataset(factory: Callable[..., Any], train: bool) -> Any:
    """The training or the test part of the data set ``factory`` makes.

    It is tried without a download first. If that fails, again when no other process is downloading into its root:
    what was missing or half written may be there by then. Only then is it downloaded.

    Args:
        factory: takes ``train`` (or ``split``: train, test) and, where there is something to download, ``download``
            and ``root``; usually a partial of a class of torchvision.datasets with its ``root``.
        train: the training part or the test part.

    Raises:
        ConfigError: missing and not downloadable, or unreadable.
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
        raise DataError(f"data set {name} not found, and it has no root folder to download to. Set root=...")
    try:
        folder = Path(root).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock").acquire()
    except OSError as error:  # a folder that is not ours to write to: nobody downloads there
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
    """(arguments that choose the part, arguments that download it too), by what ``factory`` takes."""
    parameters = inspect.signature(factory).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    stays, downloads = ({"download": d} if "download" in parameters or anything else {} for d in (False, True))
    if "train" in parameters or (anything and ("split" in keywords or "split" not in parameters)):
        return {"train": train, **stays}, downloads
    if "split" in parameters:
        return {"split": "train" if train else "test", **stays}, downloads
    raise DataError(
        f"data set {name} has no train or split argument, so its test set cannot be loaded. Wrap it in a function "
        "(train, download) -> data set"
    )


def _missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, RuntimeError) and "not found" in str(error).lower()
    )


def _not_there(name: str, root: str, error: Exception) -> DataError:
    return DataError(
        f"data set {name} is not in {root} and could not be downloaded ({_reason(error)}): put it there, set data_dir, "
        f"or go online; {OFFLINE}"
    )


def _unreadable(name: str, root: str | None, error: Exception) -> DataError:
    return DataError(
        f"data set {name} in {root} cannot be read, a file may be cut short ({_reason(error)}): delete it and run again "
        "to download it again"
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@dataclass(frozen=True)
class Source:
    """One data set: its name, training and test images, and number of classes."""

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
    """The training and the test part of a torchvision-like data set, read into memory once, or streamed.

    Args:
        factory: makes the data set; see ``open_dataset``.
        resize: height and width that every image is brought to.
        memory_limit, workers: see ``in_memory_or_streamed``.

    Raises:
        ConfigError: missing and not downloadable, unreadable, or not images of one shape with a label 0, 1, ... each.
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
                f"data set {name} has the labels {wrong[:5]} in its {part} part: labels are 0, 1, ..., and a class has training "
                "examples; map them in the data set"
            )
    return Source(name, train, test, classes)
