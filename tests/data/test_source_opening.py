import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clbench.data.source import read
from clbench.errors import ConfigError


class Downloaded:
    """Data set of ten images in one file, downloaded slowly in two halves. Every download leaves a marker file."""

    def __init__(self, root, train=True, download=False):
        file = Path(root) / "images.npy"
        if download and not file.exists():
            (Path(root) / f"download of {os.getpid()}").touch()
            whole = np.arange(1000).astype(np.uint8).reshape(10, 10, 10)
            np.save(Path(root) / "whole.npy", whole)
            content = (Path(root) / "whole.npy").read_bytes()
            with file.open("wb", buffering=0) as stream:
                stream.write(content[:500])
                time.sleep(0.3)
                stream.write(content[500:])
        if not file.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.data = np.load(file)
        self.targets = list(range(10))


class ByName:
    """Data set with the argument ``split``, as torchvision's SVHN, without download."""

    def __init__(self, root, split="train", transform=None):
        self.data = np.full((4, 2, 2), {"train": 1, "test": 2}[split], dtype=np.uint8)
        self.labels = [0, 1, 0, 1]


class OnlyOne:
    def __init__(self, root):
        pass


def reads(root, late, done):
    time.sleep(late)
    done.put(int(read(partial(Downloaded, root=root)).train.x.sum()))


def test_parallel_jobs_download_once_and_all_read_the_whole(tmp_path):
    context = multiprocessing.get_context("fork")  # the other processes import everything again
    done = context.Queue()
    jobs = [context.Process(target=reads, args=(str(tmp_path), 0.1 * k, done)) for k in (0, 0, 1, 2)]
    for job in jobs:
        job.start()
    sums = [done.get(timeout=60) for _ in jobs]  # later processes find the file half written
    for job in jobs:
        job.join()
    assert sums == [int(np.arange(1000).astype(np.uint8).sum())] * 4
    assert len(list(tmp_path.glob("download of *"))) == 1


def test_data_that_another_process_downloaded_are_reused(tmp_path, monkeypatch):
    """A process that waited for the download of another one reads the files that are then in place."""
    tries = []

    def factory(root, train, download):
        tries.append(download)
        if len(tries) == 1:
            raise RuntimeError("Dataset not found.")
        return Downloaded(root, train, True)

    read(partial(factory, root=str(tmp_path)))
    assert tries == [False, False, False]  # again for the training set, then for the test set


def test_data_sets_with_named_parts_are_opened_by_name():
    source = read(partial(ByName, root="anywhere"))
    assert (source.train.x.unique().tolist(), source.test.x.unique().tolist()) == ([1], [2])


def test_a_data_set_without_parts_is_refused():
    with pytest.raises(ConfigError, match="OnlyOne has no train or split argument"):
        read(partial(OnlyOne, root="anywhere"))


def test_missing_data_without_a_download_are_named(tmp_path):
    def absent(root, train):
        raise FileNotFoundError("no such file")

    with pytest.raises(ConfigError, match="data set absent is not in .* and could not be downloaded"):
        read(partial(absent, root=str(tmp_path)))
