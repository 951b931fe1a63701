"""Images of different sizes and channels become tasks of one sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import rgb_to_grayscale

from clbench.data import TaskSequence, chain
from clbench.errors import ConfigError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 6, 6)).astype(np.uint8)
RGB = RANDOM.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)


class Given:
    def __init__(self, data: np.ndarray, train: bool) -> None:
        self.data, self.targets = data, [0, 1] * 6

    def __len__(self) -> int:
        return len(self.data)


class ByItem(Given):
    transform = None

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.data[row], self.targets[row]

    def __init__(self, data: np.ndarray, train: bool) -> None:
        super().__init__(data, train)
        self.transform = str


def sequence(kind: type, **options: Any) -> TaskSequence:
    return TaskSequence([partial(kind, GREY), partial(kind, RGB)], chain, validation=0, **options)


def first(tasks: TaskSequence, index: int) -> torch.Tensor:
    return next(iter(tasks[index].importance_dataloader())).x


@pytest.mark.parametrize("memory_limit", [None, 0])
@pytest.mark.parametrize("kind", [Given, ByItem])
def test_grey_and_rgb_images_become_one_shape(kind: type, memory_limit: int | None) -> None:
    options = {"resize": 8, "memory_limit": memory_limit, "workers": 0, "scale": 1}
    rgb, grey = (sequence(kind, channels=channels, **options) for channels in (3, 1))
    assert (rgb.shape, grey.shape) == ((3, 8, 8), (1, 8, 8))
    pixels = torch.from_numpy(RGB).permute(0, 3, 1, 2)
    assert torch.equal(first(rgb, 1), pixels.float())
    assert torch.equal(first(grey, 1), rgb_to_grayscale(pixels).float())
    assert torch.equal(first(rgb, 0), first(grey, 0).expand(-1, 3, -1, -1))


def test_the_fingerprint_does_not_depend_on_the_conversion() -> None:
    assert sequence(Given, resize=8, channels=1).fingerprint == sequence(Given, resize=4, channels=3).fingerprint


def test_different_shapes_name_both_options() -> None:
    with pytest.raises(ConfigError, match="Try resize=.* for equal sizes, and channels=1 or 3 for equal channels"):
        sequence(Given)


@pytest.mark.parametrize(("channels", "message"), [(2, "expected 1 .grey."), (True, "expected 1 .grey.")])
def test_other_numbers_of_channels_are_refused(channels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"channels=.*: {message}"):
        sequence(Given, channels=channels)


def test_images_of_two_channels_are_not_converted() -> None:
    two = np.zeros((12, 6, 6, 2), np.uint8)
    with pytest.raises(ConfigError, match="channels=3: expected images with 1 or 3 channels, got 2"):
        TaskSequence([partial(Given, two)], chain, channels=3)
