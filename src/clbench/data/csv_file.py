"""Read a CSV file as columns of text, with the line of each row for messages."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clbench.config.known_names import suggest
from clbench.errors import DataError


@dataclass(frozen=True)
class CsvFile:
    """Rows of text of a CSV file.

    Attributes:
        path: The file.
        names: Names of the columns, from the first line.
        rows: Values of each row, one per column.
        lines: Line of each row, from 1.
    """

    path: Path
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Return the values of the column ``name``.

        Raises:
            ConfigError: There is no such column.
        """
        if name not in self.names:
            raise DataError(
                f"target={name}: expected a column of {self.path} ({', '.join(self.names)}).{suggest(name, [*self.names])}"
            )
        index = self.names.index(name)
        return [row[index] for row in self.rows]

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Return the values of the columns ``names`` as numbers (N, F), float64.

        Raises:
            ConfigError: There is no such column, or a value is not a finite number.
        """
        columns = [[finite(text) for text in self.column(name)] for name in names]
        for name, column in zip(names, columns, strict=True):
            if None in column:
                row = column.index(None)
                raise DataError(
                    f"{self.path}, line {self.lines[row]}, column {name}: expected a finite number, got "
                    f"{self.column(name)[row]!r}. Correct the value, or remove the row or the column."
                )
        return np.array(columns, float).T


def finite(text: str) -> float | None:
    """Return the finite number that ``text`` is, None if it is none.

    >>> finite(" 1e3"), finite("nan"), finite("")
    (1000.0, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def read_csv(path: str | Path, delimiter: str = ",") -> CsvFile:
    r"""Return the rows of a CSV file in UTF-8 whose first line has the names of the columns. Empty lines are skipped.

    Args:
        path: The file.
        delimiter: Character between two values.

    Raises:
        ConfigError: There is no such file, it is not a CSV file in UTF-8, it has no row, a name occurs twice, or a row does not
            have one value per column.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.csv").write_text("x,y\n1,cat\n", encoding="utf-8")
    ...     read_csv(f"{folder}/a.csv").column("y")
    ['cat']
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected a CSV file whose first line has the names of the columns.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            numbered = [(row, reader.line_num) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
    if len(numbered) < 2:
        raise DataError(
            f"{path}: expected a line with the names of the columns and at least one row, got {len(numbered)} lines. Add rows."
        )
    names = tuple(name.strip() for name in numbered[0][0])
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise DataError(f"{path}: expected columns with different names, got {twice[0]!r} twice. Rename one of them.")
    for row, line in numbered[1:]:
        if len(row) != len(names):
            raise DataError(
                f"{path}, line {line}: expected {len(names)} values as in the first line, got {len(row)}. Correct the row, or "
                f"set delimiter, now {delimiter!r}."
            )
    return CsvFile(path, names, [row for row, _ in numbered[1:]], [line for _, line in numbered[1:]])
