"""Write and read files of torch.save. Damaged files are refused before anything in them is used."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from clbench.errors import ConfigError
from clbench.runs.folder import atomically

ZIP = b"PK\x03\x04"
"""First bytes of a zip file. Files of torch.save before torch 1.6 are no zip files, and have no checksums."""

DAMAGED = (BadZipFile, OSError, RuntimeError, EOFError, ValueError, OverflowError, zlib.error, struct.error)
"""What zipfile raises while it reads an open file in which a bit has changed, or of which the end is missing."""

UNREADABLE = (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What torch.load raises for a file of another program, or for one with objects that could run code."""


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` with torch.save. A file under its final name is complete.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    atomically(path, partial(_save, content))


def read_file(path: Path, remedy: str, option: str = "", mmap: bool = False) -> Any:
    """Return the contents of a file of torch.save, on the CPU.

    torch.save stores a CRC-32 of each tensor, which torch.load does not compare. This function compares all of them first, in
    about 0.07 s for 100 MB. Only tensors and plain values are read (``weights_only``), so the file cannot run code.

    Args:
        path: The file.
        remedy: What the user can do, as the last sentence of the error.
        option: Option that names the file, for the error.
        mmap: Whether tensors are read when they are used.

    Raises:
        ConfigError: The file is damaged, was written by another program, or contains objects that could run code.
        OSError: The file cannot be opened.
    """
    name = f"{option}={path}" if option else str(path)
    if (reason := _damage(path)) is not None:
        raise ConfigError(f"{name}: {reason}. {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files of other programs, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UNREADABLE as error:
        raise ConfigError(
            f"{name}: expected tensors and plain values in a file of torch.save, but it was written by another program or "
            f"contains objects that could run code. {remedy}"
        ) from error


def _damage(path: Path) -> str | None:
    """Return why the file cannot be used, None if the checksums of its parts are right or if it has none."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        return f"expected a file, found a {'folder' if path.is_dir() else 'device'}"
    with path.open("rb") as file:
        start = file.read(len(ZIP))
        if not start:
            return "the file is empty"
        if start != ZIP:
            return None
        try:
            wrong = ZipFile(file).testzip()
        except DAMAGED as error:
            return f"the file is damaged ({str(error).rstrip('.')})"
    return None if wrong is None else f"the file is damaged (wrong checksum of {wrong.partition('/')[2]})"


def _save(content: Mapping[str, Any], path: Path) -> None:
    """Call torch.save with an open file, because torch does not report why it cannot write to a path."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
