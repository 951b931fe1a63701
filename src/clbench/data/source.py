"""Sources: a torchvision-like data set read once into uint8 tensors, downloaded only where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from clbench.errors import ConfigError

OFFLINE = "data=permuted_digits and data=split_digits run offline"


@dataclass(frozen=True)
class Images:
    """Inputs x (N, C, H, W), uint8, and labels y (N,), int64, in memory."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Images:
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Source:
    """One data set: its name, training and test images, and number of classes."""

    name: str
    train: Images
    test: Images
    classes: int


def read(factory: Callable[..., Any]) -> Source:
    """Read the training and the test part of a torchvision-like data set.

    Args:
        factory: ``factory(train=bool, download=bool)`` gives an object with ``data`` (N, H, W[, C]) uint8 and
            ``targets``; usually a partial of a class of torchvision.datasets with its ``root``.

    Raises:
        ConfigError: missing and not downloadable, unreadable, or not of that form.
    """
    cls = factory.func if isinstance(factory, partial) else factory
    name = getattr(cls, "__name__", str(cls))
    root = factory.keywords.get("root") if isinstance(factory, partial) else None
    train, test = (_images(_open(factory, name, root, part), name) for part in (True, False))
    return Source(name, train, test, int(train.y.max()) + 1)


def _open(factory: Callable[..., Any], name: str, root: str | None, train: bool) -> Any:
    """The data set as it lies under ``root``; else downloaded, by one process at a time."""
    try:
        return factory(train=train, download=False)
    except (RuntimeError, FileNotFoundError) as error:
        if "not found" not in str(error).lower() and not isinstance(error, FileNotFoundError):
            raise _unreadable(name, root, error) from error
    except Exception as error:
        raise _unreadable(name, root, error) from error
    if root is None:
        raise ConfigError(f"data set {name} not found, and it has no root folder to download to: set data.source.root")
    try:
        folder = Path(root).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            return factory(train=train, download=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"data set {name} is not in {root} and could not be downloaded ({reason}): put it there, set data_dir, "
            f"or go online; {OFFLINE}"
        ) from error


def _unreadable(name: str, root: str | None, error: Exception) -> ConfigError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return ConfigError(
        f"data set {name} in {root} cannot be read, a file may be cut short ({reason}): delete it and run again to "
        "download it anew"
    )


def _images(dataset: Any, name: str) -> Images:
    x = torch.as_tensor(np.asarray(dataset.data))
    y = torch.as_tensor(np.asarray(dataset.targets), dtype=torch.long)
    if x.dtype != torch.uint8 or x.ndim not in (3, 4) or len(x) != len(y):
        raise ConfigError(
            f"data set {name} has data {tuple(x.shape)} {x.dtype} and {len(y)} targets; it needs uint8 images "
            "(N, H, W) or (N, H, W, C) and a target each"
        )
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return Images(x.contiguous(), y)
