"""Tables of numbers in CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clbench.data import csv_files
from clbench.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """``write("a.csv", "x,y", "1,cat")`` writes the lines to a file and returns its path."""

    def file(name: str, *lines: str) -> str:
        path: Path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return file


def rows_of(source) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and targets of the training and test rows, one after the other."""
    parts = [source(train=True), source(train=False)]
    return np.concatenate([part.data for part in parts]), np.concatenate([part.targets for part in parts])


def test_each_file_is_a_task_with_the_same_class_numbers(write):
    """The features follow the order of the first file, and dogs are class 1 in both files."""
    a = write("a.csv", "size,kind,age", *(f"{n},{'dog' if n % 2 else 'cat'},{10 * n}" for n in range(10)))
    b = write("b.csv", "age,size,kind", *(f"{10 * n},{n},{'dog' if n % 2 else 'fox'}" for n in range(10)))
    first, second = csv_files([a, b], target="kind")
    assert (first.__name__, second.__name__) == ("a", "b")
    for source, even in ((first, 0), (second, 2)):
        train, test = source(train=True), source(train=False)
        assert (len(train), len(test)) == (8, 2) and train.classes == ["cat", "dog", "fox"] and train.outputs == 3
        assert train.data.dtype == np.float32 and train.targets.dtype == np.int64
        x, y = rows_of(source)
        np.testing.assert_allclose(x[:, 0], x[:, 1], rtol=1e-5)
        order = x[:, 0].argsort()
        assert y[order].tolist() == [even, 1] * 5


def test_features_are_standardised_by_the_training_rows(write):
    values = np.random.default_rng(0).normal(5, 3, 50)
    file = write("a.csv", "x,y,constant", *(f"{value},{k % 2},0.1" for k, value in enumerate(values)))
    (source,) = csv_files([file], target="y", test=0.3)
    train, test = source(train=True), source(train=False)
    assert len(test) == 15
    np.testing.assert_allclose(train.data[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(train.data[:, 0].std(), 1, rtol=1e-6)
    assert not (train.data[:, 1].any() or test.data[:, 1].any())
    x, _ = rows_of(source)
    scale = (values.max() - values.min()) / (x[:, 0].max() - x[:, 0].min())
    np.testing.assert_allclose(
        np.sort(x[:, 0]) * scale, np.sort(values) - values.min() + x[:, 0].min() * scale, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("values", "classes", "targets"),
    [
        (["10", "9", "10", "-1"], ["-1", "9", "10"], [2, 1, 2, 0]),
        (["b", "a", " b ", "7"], ["7", "a", "b"], [2, 1, 2, 0]),
        (["1.5", "2", "3", "4"], None, [[1.5], [2], [3], [4]]),
        (["1e3", "2", "3", "4"], None, [[1000], [2], [3], [4]]),
        (["30", "10", "20", "10"], None, [[30], [10], [20], [10]]),
    ],
)
def test_a_target_is_a_class_or_a_number(write, values, classes, targets):
    file = write("a.csv", "x,y", *(f"{k},{value}" for k, value in enumerate(values)))
    (source,) = csv_files([file], target="y", test=0.5, loss="cross_entropy" if classes else "mse")
    x, y = rows_of(source)
    assert y[x[:, 0].argsort()].tolist() == targets
    assert source(train=True).classes == classes
    assert y.dtype == (np.int64 if classes else np.float32)


def test_several_target_columns_are_numbers(write):
    file = write("a.csv", "u;x;v", "1;0;2", "", "3;1;4", "5;2;6")
    (source,) = csv_files([file], target=["v", "u"], delimiter=";")
    x, y = rows_of(source)
    assert y.dtype == np.float32 and y[x[:, 0].argsort()].tolist() == [[2, 1], [4, 3], [6, 5]]


def test_the_name_of_a_column_may_be_a_number(write):
    (source,) = csv_files([write("a.csv", "x,2020", "1,0", "2,1")], target=2020)
    assert sorted(rows_of(source)[1]) == [0, 1]


def test_at_least_one_row_is_in_each_part(write):
    file = write("a.csv", "x,y", "1,0", "2,1")
    for test in (0.01, 0.99):
        (source,) = csv_files([file], target="y", test=test)
        assert len(source(train=True)) == len(source(train=False)) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "a.csv: expected a line with the names of the columns and at least one row, got 0 lines"),
        (["x,y"], "at least one row, got 1 lines. Add rows"),
        (["x,y", "1,2"], "table a: expected at least 2 rows"),
        (["x,x,y", "1,1,2"], "a.csv: expected columns with different names, got 'x' twice"),
        (["x,Y", "1,2"], r"target=y: expected a column of .*a.csv \(x, Y\)"),
        (["x,yy", "1,2"], r"target=y: expected a column of .* Did you mean yy\?"),
        (["y", "1", "2"], "a.csv: expected at least one column apart from the targets"),
        (
            ["x,y", "1,0", "", "2", "3,1"],
            "a.csv, line 4: expected 2 values as in the first line, got 1. .* delimiter, now ','",
        ),
        (["x,y", "1,0", "old,1"], "a.csv, line 3, column x: expected a finite number, got 'old'. Correct the value"),
        (["x,y", "1,0", "nan,1"], "line 3, column x: expected a finite number, got 'nan'"),
        (["x,y", "1,0", ",1"], "line 3, column x: expected a finite number, got ''"),
        (["x,y", "1,0", "2,"], "line 3: expected a class in column y, got ''"),
        (["x,y", "1,0.5", "2,1"], "line 2: expected a class, an integer or text, in column y, got 0.5. Use loss=mse"),
        (["x,y", "1,0", "2,NaN"], "line 3: expected a class in column y, got 'NaN'"),
    ],
)
def test_an_unusable_table_is_one_line(write, lines, message):
    with pytest.raises(ConfigError, match=message) as caught:
        csv_files([write("a.csv", *lines)], target="y")
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_differ_are_one_line(write, tmp_path):
    a, b = write("a.csv", "x,y", "1,0", "2,1"), write("b.csv", "x,z,y", "1,2,0", "2,3,1")
    (tmp_path / "latin.csv").write_bytes(b"x,y\n1,\xe9\n")
    for arguments, message in (
        ({"files": []}, r"files=\[\]: expected a list of at least one file"),
        ({"files": a}, "files=.*a.csv: expected a list"),
        ({"files": [a, b]}, "b.csv: expected the columns of .*a.csv, but only one of them has z"),
        ({"files": [str(tmp_path / "c.csv")]}, "c.csv: no such file. Expected a CSV file"),
        ({"files": [str(tmp_path)]}, "no such file"),
        ({"files": [str(tmp_path / "latin.csv")]}, "latin.csv: expected a CSV file in UTF-8"),
        ({"files": [a], "target": []}, r"target=\[\]: expected a column or a list of columns"),
        ({"files": [a], "test": 0}, "test=0: expected a number between 0 and 1"),
        ({"files": [a], "delimiter": ", "}, "delimiter=, : expected one character"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            csv_files(**{"target": "y", **arguments})
        assert "\n" not in str(caught.value)


def test_numbers_to_predict_may_not_be_text(write):
    with pytest.raises(ConfigError, match="line 3, column y: expected a finite number, got 'cat'"):
        csv_files([write("a.csv", "x,y", "1,0.5", "2,cat")], target="y", loss="mse")
