"""Tables of numbers in CSV files, one data set per file."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from clbench.data.csv_file import CsvFile, finite, read_csv
from clbench.errors import DataError, expected

MISSING = {"", "nan", "na", "n/a", "null"}
"""Texts in lower case that mean that there is no value."""

INTEGER = re.compile(r"\s*[-+]?\d+\s*")


class Table:
    """Rows of a table with their targets.

    Args:
        data: Features (N, F), float32.
        targets: Class numbers (N,), int64, or numbers (N, K), float32.
        classes: Names of the classes, None for numbers.

    Attributes:
        outputs: Number of classes of all tables. Numbers do not have this attribute.

    >>> len(Table(np.zeros((3, 2), np.float32), np.array([0, 1, 1]), ["cat", "dog"]))
    3
    """

    def __init__(self, data: np.ndarray, targets: np.ndarray, classes: list[str] | None) -> None:
        self.data, self.targets, self.classes = data, targets, classes
        if classes is not None:
            self.outputs = len(classes)  # a table may lack a class that another one has

    def __len__(self) -> int:
        return len(self.data)


def csv_files(
    files: Sequence[str],
    target: str | Sequence[str],
    test: float = 0.2,
    delimiter: str = ",",
    loss: str = "cross_entropy",
) -> list[CsvTable]:
    r"""Return a source for each CSV file, for ``TaskSequence`` with ``chain``, so that each file is a task.

    The first line of a file has the names of the columns. All columns but the targets are features, in the order of the first
    file. Every file has the same columns.

    With ``loss="mse"`` the targets are the numbers in the columns ``target``. They are not scaled. Several columns are always
    numbers. Otherwise the target is one column of classes, integers or text. The classes of all files together are numbered 0, 1,
    ... in sorted order, so a class has the same number in every task.

    The rows of each file are shuffled in a fixed order that depends on their number only. The first ones are the test set. Each
    feature is standardised by its mean and standard deviation in the training rows of the file. A feature that is constant there
    is only shifted, to 0.

    Args:
        files: CSV files in UTF-8.
        target: Column of the target, or a list of columns.
        test: Share of the rows that is the test set, at least one row.
        delimiter: Character between two values of a row.
        loss: Name of the loss.

    Raises:
        ConfigError: An argument is invalid, a file is missing or not a table, a column is missing, or a feature is not a finite
            number.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "a.csv").write_text("size,kind\n1,cat\n3,dog\n5,cat\n", encoding="utf-8")
    ...     (source,) = csv_files([f"{folder}/a.csv"], target="kind")
    >>> source(train=True).data.tolist(), source(train=True).classes
    ([[-1.0], [1.0]], ['cat', 'dog'])
    """
    if isinstance(files, str) or not files:
        raise DataError(expected("files", files, "a list of at least one file", "Try files=[a.csv,b.csv]."))
    if isinstance(test, bool) or not isinstance(test, int | float) or not 0 < test < 1:
        raise DataError(expected("test", test, "a number between 0 and 1", "Try 0.2."))
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"':
        raise DataError(expected("delimiter", delimiter, "one character", 'Try delimiter=";".'))
    columns = [
        str(name) for name in ([target] if isinstance(target, str | int) else target or [])
    ]  # 2020 is a name too
    if not columns:
        raise DataError(expected("target", target, "a column or a list of columns"))
    tables = [read_csv(file, delimiter) for file in files]
    names = [name for name in tables[0].names if name not in columns]
    targets, classes = _targets(tables, columns, loss)
    _check_columns(tables, names)
    return [
        CsvTable(table.path.stem, table.numbers(names), y, classes, test)
        for table, y in zip(tables, targets, strict=True)
    ]


class CsvTable:
    """Opens the training or test rows of one file. See ``csv_files``.

    Args:
        name: Name for messages.
        x: Features (N, F) of all rows.
        y: Targets of all rows.
        classes: Names of the classes, None for numbers.
        test: Share of the rows that is the test set.

    Raises:
        ConfigError: There are fewer than two rows.

    >>> CsvTable("cats", np.arange(6.0).reshape(3, 2), np.array([0, 1, 0]), ["cat", "dog"], test=0.5)(train=False).data.shape
    (2, 2)
    """

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, classes: list[str] | None, test: float) -> None:
        if len(x) < 2:
            raise DataError(
                f"table {name}: expected at least 2 rows, one for training and one for testing, got {len(x)}."
            )
        self.x, self.y, self.classes, self.test = x, y, classes, test
        self.__name__ = name

    def __call__(self, train: bool) -> Table:
        number = min(max(round(self.test * len(self.x)), 1), len(self.x) - 1)
        order = np.random.default_rng(0).permutation(len(self.x))
        rows = order[number:] if train else order[:number]
        standardised = standardise(self.x, self.x[order[number:]])
        return Table(standardised[rows].astype(np.float32), self.y[rows], self.classes)


def standardise(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return ``x`` (N, F) minus the mean of ``reference`` (M, F), divided by its standard deviation unless that is 0.

    >>> standardise(np.array([[3.0, 5.0]]), reference=np.array([[1.0, 5.0], [2.0, 5.0]])).tolist()
    [[3.0, 0.0]]
    """
    is_constant = reference.max(0) == reference.min(0)
    mean = np.where(is_constant, reference[0], reference.mean(0))  # the mean of equal numbers may differ by rounding
    result: np.ndarray = (x - mean) / np.where(is_constant, 1, reference.std(0))
    return result


def _targets(tables: Sequence[CsvFile], columns: Sequence[str], loss: str) -> tuple[list[np.ndarray], list[str] | None]:
    """Return the targets of each table and the names of the classes, None for numbers."""
    if loss == "mse" or len(columns) > 1:
        return [table.numbers(columns).astype(np.float32) for table in tables], None
    texts = [[text.strip() for text in table.column(columns[0])] for table in tables]
    for table, column in zip(tables, texts, strict=True):
        for line, text in zip(table.lines, column, strict=True):
            if text.lower() in MISSING:
                raise DataError(
                    f"{table.path}, line {line}: expected a class in column {columns[0]}, got {text!r}. Add it."
                )
            if finite(text) is not None and not INTEGER.fullmatch(text):
                raise DataError(
                    f"{table.path}, line {line}: expected a class, an integer or text, in column {columns[0]}, got {text}. Use "
                    "loss=mse for numbers."
                )
    are_integers = all(INTEGER.fullmatch(text) for column in texts for text in column)
    keys = [[int(text) for text in column] for column in texts] if are_integers else texts
    classes = sorted({key for column in keys for key in column})
    numbers = {key: number for number, key in enumerate(classes)}
    return [np.array([numbers[key] for key in column], np.int64) for column in keys], [str(key) for key in classes]


def _check_columns(tables: Sequence[CsvFile], names: Sequence[str]) -> None:
    """Raise ConfigError unless there is a feature, and every table has the columns of the first one."""
    first = tables[0]
    if not names:
        raise DataError(f"{first.path}: expected at least one column apart from the targets. Add the features.")
    for table in tables[1:]:
        different = sorted(set(table.names) ^ set(first.names))
        if different:
            raise DataError(
                f"{table.path}: expected the columns of {first.path}, but only one of them has {', '.join(different)}. Rename or "
                "remove the column."
            )
