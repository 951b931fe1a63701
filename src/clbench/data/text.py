"""Bytes of text, each of which is predicted from those before it: domains of text, and folders of text files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clbench.data.source import PARTS
from clbench.data.text_extracts import EXTRACTS, extract
from clbench.errors import DataError, expected


class ByteText:
    """Successive windows of a text, with the next byte as the target of each byte. The remainder of the text is left out.

    Args:
        text: At least ``length + 1`` bytes in any encoding.
        length: Bytes T of a window.
        name: Name for messages.

    Attributes:
        data: Bytes (N, T), uint8.
        targets: Next bytes (N, T), int64. The last one of a window is the first byte of the next window.
        outputs: Number of values of a byte, 256.
        is_bytes: Whether a target is a byte, so that a loss in bits is bits per byte.

    Raises:
        ConfigError: ``length`` is not an integer >= 1, or the text is shorter than one window.

    >>> windows = ByteText(b"abcdefgh", length=3)
    >>> windows.data.tolist(), windows.targets.tolist()
    ([[97, 98, 99], [100, 101, 102]], [[98, 99, 100], [101, 102, 103]])
    """

    outputs = 256
    is_bytes = True

    def __init__(self, text: bytes, length: int, name: str = "text") -> None:
        _at_least_one("length", length)
        number = (len(text) - 1) // length
        if number < 1:
            raise DataError(
                f"length={length}: expected at most {max(len(text) - 1, 0)}, because {name} has {len(text)} bytes. Lower it or "
                "use a longer text."
            )
        values = np.frombuffer(text, np.uint8, number * length + 1)
        self.data = values[:-1].reshape(number, length).copy()
        self.targets = values[1:].reshape(number, length).astype(np.int64)

    def __len__(self) -> int:
        return len(self.data)


def text_domains(
    domains: Sequence[str] = ("documentation", "source", "unicode", "sums"),
    length: int = 128,
    train_bytes: int = 2**18,
    test_bytes: int = 2**16,
) -> list[TextDomain]:
    """Return a source for each domain of text, for ``TaskSequence`` with ``chain``, so that each domain is a task.

    The text comes from the Python installation, so nothing is downloaded. ``documentation`` is English prose, ``source`` is
    Python code, ``unicode`` is a table of upper-case names, and ``sums`` are additions in decimal digits.
    ``clbench.data.text_extracts`` has the rules. The first three depend on the version of Python, so only runs with one version
    are comparable. The fingerprint of the data shows a difference.

    Args:
        domains: Names of the domains.
        length: Bytes T of an example.
        train_bytes: Bytes of the training set: the first ones of the text.
        test_bytes: Bytes of the test set: those that follow the training set.

    Raises:
        ConfigError: A domain is unknown, a number is not an integer >= 1, or (when a source is opened) the text is too short or
            this Python installation does not have it.

    >>> prose, code = text_domains(["documentation", "source"], length=64)
    >>> prose(train=True).data.shape, code(train=False).targets.shape
    ((4095, 64), (1023, 64))
    """
    if isinstance(domains, str) or not domains or not set(domains) <= EXTRACTS.keys():
        raise DataError(expected("domains", domains, f"a list with at least one of {', '.join(EXTRACTS)}"))
    for name, value in (("length", length), ("train_bytes", train_bytes), ("test_bytes", test_bytes)):
        _at_least_one(name, value)
    return [TextDomain(domain, length, train_bytes, test_bytes) for domain in domains]


class TextDomain:
    """Opens the training or test set of one domain. See ``text_domains`` for the arguments.

    >>> TextDomain("sums", 32, train_bytes=1000, test_bytes=500)(train=False).data.shape
    (15, 32)
    """

    def __init__(self, domain: str, length: int, train_bytes: int, test_bytes: int) -> None:
        self.length, self.train_bytes, self.test_bytes = length, train_bytes, test_bytes
        self.__name__ = domain

    def __call__(self, train: bool) -> ByteText:
        text = extract(self.__name__)
        if self.train_bytes + self.test_bytes > len(text):
            raise DataError(
                f"train_bytes={self.train_bytes}, test_bytes={self.test_bytes}: expected a sum of at most {len(text)}, the bytes "
                f"of the domain {self.__name__}. Lower one of them or leave the domain out."
            )
        first, last = (0, self.train_bytes) if train else (self.train_bytes, self.train_bytes + self.test_bytes)
        return ByteText(text[first:last], self.length, f"the domain {self.__name__}")


def text_folders(folders: Sequence[str], length: int = 128, test: float = 0.2) -> list[TextFolder]:
    """Return a source for each folder of .txt files, for ``TaskSequence`` with ``chain``, so that each folder is a task.

    The files are read as bytes, so they may have any encoding. They are joined by line breaks in the order of their names.

    Args:
        folders: Folders that contain .txt files, or the subfolders train and test that contain them.
        length: Bytes T of an example.
        test: Share of the bytes at the end of the text that is the test set. Not used for a folder with train and test.

    Raises:
        ConfigError: There is no folder, ``length`` or ``test`` is out of range, or (when a source is opened) a folder has no text
            or too little.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_text("to be or not to be, that is the question", encoding="utf-8")
    ...     text_folders([folder], length=8)[0](train=True).data.shape
    (3, 8)
    """
    if isinstance(folders, str) or not folders:
        raise DataError(expected("folders", folders, "a list of at least one folder", "Try folders=[texts/english]."))
    _at_least_one("length", length)
    if isinstance(test, bool) or not isinstance(test, int | float) or not 0 < test < 1:
        raise DataError(expected("test", test, "a number between 0 and 1", "Try 0.2."))
    return [TextFolder(folder, length, test) for folder in folders]


class TextFolder:
    """Opens the training or test set of one folder of .txt files. See ``text_folders`` for the arguments.

    >>> TextFolder("texts/english", length=32, test=0.2).__name__  # in messages
    'english'
    """

    def __init__(self, folder: str, length: int, test: float) -> None:
        self.folder, self.length, self.test = Path(folder).expanduser(), length, test
        self.__name__ = self.folder.resolve().name

    def __call__(self, train: bool) -> ByteText:
        parts = [self.folder / part for part in PARTS]
        if any(part.is_dir() for part in parts):
            text = _joined(parts[not train])
        else:
            whole = _joined(self.folder)
            first = len(whole) - round(self.test * len(whole))
            text = whole[:first] if train else whole[first:]
        return ByteText(text, self.length, f"the {PARTS[not train]} set of {self.folder}")


def _joined(folder: Path) -> bytes:
    """Return the bytes of the .txt files in ``folder``."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Expected a folder with .txt files.")
    files = sorted(file for file in folder.glob("*.txt") if file.is_file())
    if not files:
        raise DataError(f"{folder}: expected .txt files, found none. Put the text of the task there.")
    return b"\n".join(file.read_bytes() for file in files)


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(expected(name, value, "an integer >= 1"))
