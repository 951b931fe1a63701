"""Every data preset as the command composes it, in every scenario, on real data if available."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from clbench.config.options import conf_dir
from clbench.data import TaskSequence
from clbench.data.scenario import Scenario
from clbench.experiment.build import build

PRESETS = sorted(file.stem for file in (conf_dir() / "data").glob("*.yaml"))
OFFLINE = ["bit_ops", "permuted_digits", "split_digits"]
SCENARIOS = [Scenario("task"), Scenario("domain", "single"), Scenario("class", "single")]
MORE = {  # number of tasks and image shape of the real data
    "mnist_fashion": (2, (1, 28, 28)),
    "mnist_usps": (2, (1, 28, 28)),
    "permuted_mnist": (10, (1, 28, 28)),
    "rotated_mnist": (5, (1, 28, 28)),
    "split_fashion_mnist": (5, (1, 28, 28)),
    "split_mnist": (5, (1, 28, 28)),
}
TARGETS = {  # kind of the targets, number of tasks and outputs, and shape of the inputs
    "digit_mass": ("numbers", 5, 4, (1, 8, 8)),
    "digit_masks": ("positions", 5, 2, (1, 12, 12)),
    "text_domains": ("positions", 4, 256, (128,)),
    "two_digits": ("labels", 5, 10, (1, 8, 16)),
}
"""Presets with other targets than one label."""

OWN = ["csv", "image_folders", "text_folders"]
"""Presets for files of the user, see test_folders.py, test_tables.py and test_text.py."""

CIFAR = {"split_cifar10": 5, "permuted_cifar10": 5, "split_cifar100": 10}


def built_sequence(composed, scenario, *overrides) -> TaskSequence:
    cfg = composed(*overrides)
    return instantiate(cfg.data, _partial_=True, _convert_="all")(scenario=scenario, batch_size=cfg.batch_size)


def check_batches(sequence, scenario):
    """Check a training batch and the test labels of the first and last task against the scenario."""
    for index in (0, len(sequence) - 1):
        offset = scenario.offset(sequence.sizes, index)
        columns = set(range(offset, offset + sequence.sizes[index]))
        batch = next(iter(sequence[index].train_dataloader()))
        assert batch.x.shape[1:] == sequence.shape
        assert batch.x.dtype == torch.get_default_dtype() and batch.x.isfinite().all()
        assert set(batch.y.tolist()) <= columns and batch.task == index
        labels = torch.cat([b.y for b in sequence[index].test_dataloader()[index]])
        assert set(labels.tolist()) == columns


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_on_all_options_of_the_command(composed, preset):
    options = {
        "examples_per_task": 10,
        "drop_last": True,
        "memory_limit": 5,
        "resize": 8,
        "workers": 1,
        "validation": 0.2,
    }
    data = composed(f"data={preset}", *(f"data.{key}={value}" for key, value in options.items())).data
    assert data.name == preset
    assert {key: data[key] for key in options} == options


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize("preset", OFFLINE)
def test_presets_without_download_are_built_in_every_scenario(composed, preset, scenario):
    check_batches(built_sequence(composed, scenario, f"data={preset}"), scenario)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize("preset", MORE)
def test_presets_of_real_data_are_built_in_every_scenario(composed, real_data, preset, scenario):
    sequence = built_sequence(composed, scenario, f"data={preset}", f"data_dir={real_data}")
    assert (len(sequence), sequence.shape) == MORE[preset]
    check_batches(sequence, scenario)


def test_the_list_of_presets_here_is_complete():
    assert sorted([*OFFLINE, *MORE, *CIFAR, *OWN, *TARGETS]) == PRESETS


@pytest.mark.parametrize("preset", TARGETS)
def test_presets_of_other_targets_are_built(composed, preset):
    sequence, learner, _ = build(composed(f"data={preset}", "scenario=domain"))
    kind, tasks, outputs, shape = TARGETS[preset]
    assert (sequence.kind, len(sequence), sequence.sizes, sequence.shape) == (kind, tasks, [outputs] * tasks, shape)
    batch = next(iter(sequence[1].train_dataloader()))
    assert learner.loss(learner(batch.x, batch.task), batch.y).isfinite()


@pytest.mark.slow
def test_usps_is_brought_to_the_size_of_mnist(composed, real_data):
    first, second = built_sequence(composed, SCENARIOS[1], "data=mnist_usps", f"data_dir={real_data}").definitions
    assert (len(second.source.train.y), len(second.source.test.y)) == (7291, 2007)
    assert second.source.train.x.shape[1:] == first.source.train.x.shape[1:] == (1, 28, 28)
    assert second.source.train.x.dtype == torch.uint8


@pytest.fixture(scope="session")
def jpeg_data():
    """Return the data folder CLBENCH_JPEG_DIR of the external module cifar10_jpeg, which must be on PYTHONPATH."""
    folder = os.environ.get("CLBENCH_JPEG_DIR", "")
    if not folder or not (Path(folder) / "cifar10_jpeg.npz").exists():
        pytest.skip("CIFAR-10: set CLBENCH_JPEG_DIR to a folder with cifar10_jpeg.npz, PYTHONPATH to its module")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("preset", "dataset"),
    [("split_cifar10", "CIFAR10Jpeg"), ("permuted_cifar10", "CIFAR10Jpeg"), ("split_cifar100", "TinyImageNet32")],
)
def test_a_dotted_path_replaces_the_data_set_of_a_preset(composed, jpeg_data, preset, dataset, scenario):
    """The replacement is a data set that is not part of the library."""
    overrides = (f"data={preset}", f"data.source._target_=cifar10_jpeg.{dataset}", f"data_dir={jpeg_data}")
    sequence = built_sequence(composed, scenario, *overrides)
    assert (len(sequence), sequence.shape) == (CIFAR[preset], (3, 32, 32))
    assert sequence.definitions[0].source.classes == (200 if dataset == "TinyImageNet32" else 10)
    check_batches(sequence, scenario)


MODULE = """
import numpy as np
class MySet:
    def __init__(self, root, train=True, transform=None, download=False):
        self.data = np.full((60, 32, 32, 3), 255, dtype=np.uint8)
        self.targets = [k % 10 for k in range(60)]
"""


def test_a_data_set_by_dotted_path_is_normalised_by_the_preset(composed, tmp_path, monkeypatch):
    """The replacement has the mean and standard deviation of the preset."""
    (tmp_path / "my_sets.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_sets", raising=False)
    sequence = built_sequence(composed, SCENARIOS[0], "data=split_cifar10", "data.source._target_=my_sets.MySet")
    batch = next(iter(sequence[0].train_dataloader()))
    expected = [(1 - m) / s for m, s in ((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))]
    torch.testing.assert_close(batch.x[0, :, 3, 4], torch.tensor(expected))


def test_augmentation_is_written_in_yaml_or_on_the_command_line(composed):
    ours = "data.augment={_target_:clbench.data.augment.RandomCrop,padding:1}"
    torchvision = "data.augment=[{_target_:torchvision.transforms.v2.RandomHorizontalFlip,p:1}]"
    plain = next(iter(built_sequence(composed, None, "data=split_digits")[0].train_dataloader()))
    for override in (ours, torchvision):
        batch = next(iter(built_sequence(composed, None, "data=split_digits", override)[0].train_dataloader()))
        assert torch.equal(batch.y, plain.y) and not torch.equal(batch.x, plain.x)
    assert torch.equal(batch.x, plain.x.flip(-1))
