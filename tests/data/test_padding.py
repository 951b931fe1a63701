"""Padded data sets."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from torchvision.datasets import MNIST

from clbench.data.padding import Padded
from clbench.data.source import read
from clbench.errors import ConfigError


class Squares:
    """Data set of images of a shape with pixels 1 to 9."""

    def __init__(self, shape=(3, 3), train=True, download=False):
        self.data = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3) * np.ones((4, 1, 1), np.uint8)
        if len(shape) == 3:
            self.data = np.stack([self.data] * 3, axis=-1)
        self.targets = [0, 1, 0, 1]


def test_padding_adds_a_black_frame_and_keeps_the_image():
    source = read(partial(Padded, Squares, by=2))
    assert source.train.shape == (1, 7, 7)
    assert source.train.x[0, 0, 2:5, 2:5].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert source.train.x.sum() == 4 * 45
    assert source.train.y.tolist() == [0, 1, 0, 1]


def test_images_with_channels_are_padded_in_height_and_width():
    assert read(partial(Padded, Squares, by=1, shape=(3, 3, 3))).train.shape == (3, 5, 5)


def test_data_sets_that_cannot_be_padded_are_refused():
    class Folder:
        def __init__(self, train=True):
            self.targets = [0]

    with pytest.raises(ConfigError, match="Folder: expected images in an array data"):
        Padded(Folder, by=2, train=True)
    with pytest.raises(ConfigError, match="by=0: expected an integer >= 1"):
        Padded(Squares, by=0)


def test_a_missing_data_set_is_named_and_not_the_padding(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="data set MNIST is not in .*file/mnist"):
        read(partial(Padded, dataset=MNIST, by=2, root=str(tmp_path / "file/mnist")))
