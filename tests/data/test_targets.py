"""What targets mean follows from the loss and their shape. Targets that do not fit are refused in one line."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from clbench.data import TaskSequence, chain, permute, rotate, split
from clbench.data.scenario import Scenario
from clbench.errors import ConfigError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (20, 4, 6)).astype(np.uint8)
TOKENS = RANDOM.integers(0, 9, (20, 5))
TABLE = RANDOM.normal(size=(20, 3))


class Given:
    """A data set of the given arrays."""

    def __init__(self, data: Any, targets: Any, train: bool, **more: Any) -> None:
        self.data, self.targets = data, targets
        vars(self).update(more)

    def __len__(self) -> int:
        return len(self.data)


def sequence(data: Any, targets: Any, loss: str = "cross_entropy", more: Any = (), **options: Any) -> TaskSequence:
    source = partial(Given, data, targets, **dict(more))
    return TaskSequence([source], options.pop("split", chain), validation=0.2, loss=loss, **options)


@pytest.mark.parametrize(
    ("data", "targets", "loss", "kind", "outputs", "shape", "dtype"),
    [
        (IMAGES, np.arange(20) % 4, "cross_entropy", "label", 4, (), torch.int64),
        (IMAGES, np.arange(20) % 2, "binary_cross_entropy", "label", 2, (), torch.int64),
        (IMAGES, RANDOM.integers(0, 2, (20, 3)), "binary_cross_entropy", "labels", 3, (3,), torch.int64),
        (IMAGES, IMAGES % 3, "cross_entropy", "positions", 3, (4, 6), torch.int64),
        (TOKENS, TOKENS, "cross_entropy", "positions", 9, (5,), torch.int64),
        (TOKENS, np.arange(20) % 4, "cross_entropy", "label", 4, (), torch.int64),
        (TABLE, TABLE[:, :2], "mse", "numbers", 2, (2,), torch.float32),
        (TABLE, TABLE[:, 0].tolist(), "mse", "numbers", 1, (1,), torch.float32),
        (TABLE, np.arange(20), "mse", "numbers", 1, (1,), torch.float32),
        (TABLE, RANDOM.integers(0, 2, (20, 3)), "binary_cross_entropy", "labels", 3, (3,), torch.int64),
        (TABLE, RANDOM.integers(0, 2, (20, 2)).astype(float), "binary_cross_entropy", "labels", 2, (2,), torch.int64),
    ],
)
def test_the_loss_and_the_shape_define_what_targets_mean(
    data: Any, targets: Any, loss: str, kind: str, outputs: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tasks = sequence(data, targets, loss)
    assert (tasks.kind, tasks.sizes) == (kind, [outputs])
    batch = next(iter(tasks[0].importance_dataloader()))
    assert batch.y.shape == (16, *shape) and batch.y.dtype == dtype
    assert batch.x.is_floating_point() == (data is not TOKENS)
    rows = tasks[0]._training[0].rows
    if data is TABLE:
        torch.testing.assert_close(batch.x, torch.from_numpy(TABLE[rows]).float())
    if data is TOKENS:
        assert batch.x.tolist() == TOKENS[rows].tolist()


def test_a_data_set_may_declare_more_classes_than_occur() -> None:
    assert sequence(TOKENS, TOKENS, more={"outputs": 256}).sizes == [256]
    with pytest.raises(ConfigError, match="expected labels below outputs=3, got 8"):
        sequence(TOKENS, TOKENS, more={"outputs": 3})


def test_a_tensor_data_set_of_a_table_keeps_its_floats() -> None:
    pair = TensorDataset(torch.from_numpy(TABLE), torch.arange(20) % 2)
    tasks = TaskSequence([lambda train: pair], chain, validation=0)
    torch.testing.assert_close(next(iter(tasks[0].importance_dataloader())).x, torch.from_numpy(TABLE).float())


def test_positions_without_a_label_are_allowed() -> None:
    labels = TOKENS.copy()
    labels[:, 0] = -100
    assert sequence(TOKENS, labels).sizes == [9]


def test_the_fingerprint_covers_all_targets() -> None:
    prints = [sequence(TABLE, y, "mse").fingerprint for y in (TABLE[:, :1], TABLE[:, 1:2])]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("data", "targets", "loss", "message"),
    [
        (IMAGES, np.eye(20, dtype=int), "cross_entropy", "loss=binary_cross_entropy for several labels, loss=mse for"),
        (IMAGES, np.where(IMAGES > 99, 255, 0), "cross_entropy", "Use mask > 0 for a mask of 0 and 255"),
        (IMAGES, IMAGES[:, :3] % 3, "cross_entropy", "Masks have the size of their images and are not resized"),
        (IMAGES, IMAGES / 255, "cross_entropy", "expected integer labels of shape (20, 4, 6)"),
        (TOKENS, TOKENS * 0 - 100, "cross_entropy", "expected at least one label, got only -100"),
        (TABLE, RANDOM.normal(size=(20, 2)), "binary_cross_entropy", "expected labels 0 or 1"),
        (TABLE, TABLE[:, 0], "cross_entropy", "use loss=mse for numbers"),
        (TABLE, TABLE[:, :1], "cross_entropy", "Use loss=mse for numbers"),
        (IMAGES, IMAGES[:, 0] % 3, "binary_cross_entropy", "expected labels 0 or 1"),
        (TABLE, np.where(TABLE > 1, np.nan, TABLE), "mse", "with loss=mse, got nan"),
        (TABLE, ["a"] * 20, "mse", "Convert the targets to numbers"),
        (IMAGES, IMAGES, "mse", "Reshape them to (N, K)"),
        (TOKENS - 5, TOKENS, "cross_entropy", "expected tokens >= 0, got -5"),
        (np.where(TABLE > 1, np.inf, TABLE), np.arange(20) % 2, "cross_entropy", "expected finite numbers, got inf"),
        (TOKENS, TOKENS - 1, "cross_entropy", "or -100 for none, got -1"),
        (TABLE, TABLE[:10, :2], "mse", "for 20 examples"),
    ],
)
def test_targets_that_do_not_fit_are_one_line(data: Any, targets: Any, loss: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sequence(data, targets, loss)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_of_images_or_one_label_are_refused_for_others() -> None:
    text, masks = partial(Given, TOKENS, TOKENS), partial(Given, IMAGES, IMAGES % 3)
    for cut in (permute, rotate, split):
        with pytest.raises(ConfigError, match=f"split={cut.__name__}: expected"):
            TaskSequence(text, cut)
        with pytest.raises(ConfigError, match=f"split={cut.__name__}: expected"):
            TaskSequence(masks, cut)
    with pytest.raises(ConfigError, match="scenario=class: expected one label per example"):
        sequence(TOKENS, TOKENS, scenario=Scenario("class", "single"))
    with pytest.raises(ConfigError, match=r"resize=\[8, 8\]: expected images"):
        sequence(TOKENS, TOKENS, resize=8)
    with pytest.raises(ConfigError, match="augment: .* got no images"):
        sequence(TOKENS, TOKENS, augment=lambda x, seed: x)
    with pytest.raises(ConfigError, match="augment: .* got a label per pixel, which would not move"):
        sequence(IMAGES, IMAGES % 3, augment=lambda x, seed: x)
    with pytest.raises(ConfigError, match=r"mean=\[0.5\]: expected images"):
        sequence(TOKENS, TOKENS, mean=0.5, std=1.0)
    with pytest.raises(ConfigError, match="validation=0.99: expected training examples in every task"):
        TaskSequence([partial(Given, TOKENS, TOKENS)], chain, validation=0.99)
    with pytest.raises(ConfigError, match="loss=hinge: expected one of cross_entropy"):
        sequence(TOKENS, TOKENS, loss="hinge")


def test_a_task_may_lack_a_class_that_its_data_set_declares() -> None:
    assert sequence(TABLE, np.arange(20) % 2, more={"outputs": 3}).sizes == [3]
