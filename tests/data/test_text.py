"""Bytes of text: domains that Python carries, and folders of text files."""

from __future__ import annotations

import sys
import sysconfig

import numpy as np
import pytest

from clbench.data import text_domains, text_folders
from clbench.data.text import ByteText
from clbench.data.text_extracts import EXTRACTS, extract
from clbench.errors import ConfigError

DOMAINS = list(EXTRACTS)


def text_of(part: ByteText) -> bytes:
    """The bytes of all windows, and the byte after the last one."""
    return part.data.tobytes() + bytes([part.targets[-1, -1]])


@pytest.mark.parametrize("domain", DOMAINS)
def test_training_and_test_part_are_successive(domain):
    source = text_domains([domain], length=10, train_bytes=1001, test_bytes=501)[0]
    train, test = source(train=True), source(train=False)
    assert source.__name__ == domain
    assert text_of(train) == extract(domain)[:1001] and text_of(test) == extract(domain)[1001:1502]
    assert train.data.dtype == np.uint8 and train.targets.dtype == np.int64
    assert train.data.shape == train.targets.shape == (len(train), 10) == (100, 10)
    assert (train.targets.ravel()[:-1] == train.data.ravel()[1:]).all()


def test_the_default_domains_have_enough_text_and_differ():
    """The mean number of bits per byte of one domain, coded with the byte frequencies of another, is higher by 0.1 or more."""
    sources = text_domains()
    assert [source.__name__ for source in sources] == DOMAINS
    counts = np.stack([np.bincount(source(True).data.ravel(), minlength=256) for source in sources])
    shares = counts / counts.sum(1, keepdims=True)
    bits = -shares @ np.log2((counts + 1) / (counts + 1).sum(1, keepdims=True)).T
    excess = bits - np.diag(bits)[:, None]
    assert (excess + np.eye(len(sources)) > 0.1).all(), excess.round(2)


def test_an_extract_is_the_same_each_time():
    for domain, function in EXTRACTS.items():
        assert function() == extract(domain)


def test_source_is_code_of_public_modules():
    assert b"class ArgumentParser" in extract("source")
    assert b"class Decimal(object)" not in extract("source")  # of _pydecimal.py


def test_a_folder_is_split_at_the_share_of_the_test_part(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"y" * 29)
    (tmp_path / "a.txt").write_bytes(b"\xff" + b"x" * 69)
    (tmp_path / "notes.md").write_bytes(b"not read")
    (source,) = text_folders([str(tmp_path)], length=2, test=0.3)
    whole = b"\xff" + b"x" * 69 + b"\n" + b"y" * 29
    assert text_of(source(train=True)) == whole[:69]  # 70 bytes, of which the last has no complete window
    assert text_of(source(train=False)) == whole[70:99]


def test_subfolders_train_and_test_are_the_parts(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.txt").write_text(f"text of {part}", encoding="utf-8")
    (source,) = text_folders([str(tmp_path)], length=1)
    assert source.__name__ == tmp_path.name
    assert text_of(source(train=True)) == b"text of train" and text_of(source(train=False)) == b"text of test"


def test_a_python_without_the_text_is_one_line(monkeypatch, tmp_path):
    extract.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for domain in ("documentation", "source"):
        with pytest.raises(ConfigError, match=f"text domain {domain}: .* data.source.folders=") as caught:
            text_domains([domain])[0](train=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": []}, r"domains=\[\]: expected a list with at least one of documentation, source, unicode, sums"),
        ({"domains": "source"}, "domains=source: expected a list"),
        ({"domains": ["poems"]}, r"domains=\['poems'\]: expected a list"),
        ({"length": 0}, "length=0: expected an integer >= 1"),
        ({"train_bytes": 0.5}, "train_bytes=0.5: expected an integer >= 1"),
        ({"test_bytes": True}, "test_bytes=True: expected an integer >= 1"),
        (
            {"train_bytes": 10**9},
            r"train_bytes=1000000000, test_bytes=65536: expected a sum of at most \d+, the bytes of the",
        ),
        (
            {"test_bytes": 100},
            "length=128: expected at most 99, because the domain documentation has 100 bytes. Lower it",
        ),
    ],
)
def test_a_wrong_argument_of_text_domains_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        text_domains(**arguments)[0](train=False)
    assert "\n" not in str(caught.value)


def test_unusable_folders_of_text_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half/train").mkdir(parents=True)
    (tmp_path / "half/train/a.txt").write_text("long enough", encoding="utf-8")
    (tmp_path / "short").mkdir()
    (tmp_path / "short/a.txt").write_text("short", encoding="utf-8")
    for folders, test, message in (
        ([], 0.2, r"folders=\[\]: expected a list of at least one folder"),
        ("texts", 0.2, "folders=texts: expected a list"),
        ([str(tmp_path / "none")], 0.2, "none: no such folder. Expected a folder with .txt files"),
        ([str(tmp_path / "empty")], 0.2, "empty: expected .txt files, found none"),
        ([str(tmp_path / "half")], 0.2, "half/test: no such folder"),
        ([str(tmp_path / "short")], 0.2, "length=8: expected at most 0, because the test set of .*short has 1 bytes"),
        ([str(tmp_path / "short")], 1, "test=1: expected a number between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            text_folders(folders, length=8, test=test)[0](train=False)
        assert "\n" not in str(caught.value)
