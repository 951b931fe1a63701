"""Runs on other contents of the data are refused, marked in reports, and do not share first tasks."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import clbench
from clbench.data import TaskSequence, chain, permute, rotate, split
from clbench.data.fingerprint import LABELS_ONLY, check_same_data, evenly_spaced, fingerprint
from clbench.data.items import read_examples
from clbench.data.source import current_fingerprint, read
from clbench.data.toy import BitOperation, Digits
from clbench.errors import OtherRun
from tests.make_finished_runs import FINISHED_RUNS

SMALL = (
    "data=split_digits",
    "data.tasks=2",
    "net.hidden=[8]",
    "steps=2",
    "trainer=cpu",
    "logger=none",
    "data.scale=255",
)
ON_DISK = (*SMALL, "data.source._target_=tests.data.test_fingerprint.OnDisk", "+data.source.root=${data_dir}")


class OnDisk:
    """Images and labels in the file data.npz of a folder."""

    def __init__(self, root: str, train: bool = True) -> None:
        with np.load(f"{root}/data.npz") as file:
            part = slice(None, -20) if train else slice(-20, None)
            self.data, self.targets = file["images"][part], file["labels"][part]


def write(folder: Any, change: Any = None, examples: int = 120) -> Any:
    """Write data.npz with 10 classes, after ``change(images, labels)``."""
    images = np.random.default_rng(0).integers(0, 256, (examples, 6, 6)).astype(np.uint8)
    labels = np.arange(examples) % 10
    if change is not None:
        change(images, labels)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "data.npz", images=images, labels=labels)
    return folder


def first_pixel(images: Any, labels: Any) -> None:
    images[0, 0, 0] += 1


def two_labels(images: Any, labels: Any) -> None:
    labels[[3, 4]] = labels[[4, 3]]


def last_test_image(images: Any, labels: Any) -> None:
    images[-1] = 255 - images[-1]


class Pairs:
    """Data set of pairs, of which only the labels are known without reading, if ``with_targets``."""

    def __init__(self, train: bool = True, examples: int = 300, with_targets: bool = True, noise: float = 0) -> None:
        self.images = np.random.default_rng(int(train)).integers(0, 200, (examples, 5, 5, 3)).astype(np.uint8)
        self.labels_of_rows = np.arange(examples) % 3
        self.noise, self.reads = noise, 0
        if with_targets:
            self.targets = self.labels_of_rows

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        self.reads += 1
        image = self.images[row] + (np.random.rand(5, 5, 3) * self.noise).astype(np.uint8)
        return image, int(self.labels_of_rows[row])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"split": split, "memory_limit": 1000},
        {"split": permute, "seed": 3},
        {"split": rotate, "tasks": 2, "validation": 0.5, "batch_size": 7},
        {"split": partial(split, order=[9, 8, 1, 0]), "tasks": 2, "examples_per_task": 5, "resize": 4, "scale": 16},
    ],
    ids=["streamed", "another seed", "another validation", "some classes, resized"],
)
def test_a_fingerprint_identifies_the_data_and_not_the_run(options, workers):
    expected = TaskSequence(Digits, split).fingerprint
    assert TaskSequence(Digits, **options, workers=workers).fingerprint == expected
    assert sorted(expected) == ["test", "train"] and all(len(text) == 16 for text in expected.values())


@pytest.mark.parametrize(
    ("change", "parts"),
    [(first_pixel, {"train"}), (two_labels, {"train"}), (last_test_image, {"test"})],
)
def test_a_fingerprint_changes_with_the_data(change, parts, tmp_path):
    before, after = (read(partial(OnDisk, str(write(tmp_path, c)))).fingerprint for c in (None, change))
    assert {part for part in before if before[part] != after[part]} == parts


def test_the_sample_contains_the_first_and_the_last_image():
    assert evenly_spaced(1, 100) == [0] and evenly_spaced(0, 100) == []
    assert evenly_spaced(60_000, 1000)[0] == 0 and evenly_spaced(60_000, 1000)[-1] == 59_999
    assert len(set(evenly_spaced(60_000, 1000))) == 1000


def test_the_order_of_several_data_sets_counts():
    sources = [partial(BitOperation, op) for op in ("and", "or")]
    options: dict[str, Any] = {"split": chain, "validation": 0, "scale": 1}
    one, other = (TaskSequence(s, **options).fingerprint for s in (sources, sources[::-1]))
    assert one["train"] != other["train"] and one == TaskSequence(sources, **options, tasks=1).fingerprint


@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("with_targets", [False, True])
def test_items_have_one_fingerprint_however_they_are_read(with_targets, limit):
    factory = partial(Pairs, with_targets=with_targets)
    found = read(factory, memory_limit=limit, workers=0).fingerprint
    assert found == read(factory).fingerprint
    assert current_fingerprint(factory) == (found if with_targets else None)


def test_a_large_lazy_data_set_is_not_read_again():
    opened = []

    def factory(train: bool) -> Pairs:
        opened.append(Pairs(train, examples=5000))
        return opened[-1]

    assert current_fingerprint(factory) is not None
    assert all(each.reads < 150 for each in opened)


def folder_of_images(root: Any, transform: Any = None, train: bool = True) -> Any:
    return ImageFolder(root, transform)


def some_of_folder(root: Any, transform: Any = None, train: bool = True) -> Any:
    return Subset(ImageFolder(root, transform), [0, 3, 5])


@pytest.mark.parametrize("factory", [folder_of_images, some_of_folder])
def test_random_transforms_do_not_change_a_fingerprint(factory, tmp_path):
    """The images are read without the transforms of the data set."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for row in range(3):
            pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{row}.png")
    transform = v2.Compose([v2.RandomResizedCrop(8), v2.RandomHorizontalFlip()])
    plain = current_fingerprint(partial(factory, tmp_path))
    assert plain == current_fingerprint(partial(factory, tmp_path, transform))
    Image.fromarray(pixels + 1).save(tmp_path / "cat/0.png")
    assert current_fingerprint(partial(factory, tmp_path, transform)) != plain


def test_images_that_change_with_each_reading_have_labels_only():
    """This is reported, because the run cannot be repeated."""
    np.random.seed(0)
    examples = read_examples(Pairs(noise=50), "Pairs")
    labels = examples.labels()
    state = np.random.get_state()[1].tolist()
    assert fingerprint(examples, labels).endswith(LABELS_ONLY)
    assert np.random.get_state()[1].tolist() == state  # the generator of the user draws the same numbers as without
    with pytest.warns(UserWarning, match="data set Pairs: its images change each time they are read"):
        found = read(partial(Pairs, noise=50)).fingerprint
    assert all(text.endswith(LABELS_ONLY) for text in found.values())
    assert found == current_fingerprint(partial(Pairs, noise=50))


def test_an_array_and_a_tensor_data_set_have_fingerprints():
    def tensors(train: bool, change: float = 0) -> TensorDataset:
        return TensorDataset(torch.linspace(0, 1, 160).view(10, 1, 4, 4) * (1 - change), torch.arange(10) % 2)

    assert read(tensors).fingerprint == read(tensors).fingerprint != read(partial(tensors, change=0.1)).fingerprint


def test_results_without_a_fingerprint_may_be_resumed(tmp_path):
    check_same_data(None, {"train": "a", "test": "b"}, tmp_path)
    with pytest.raises(OtherRun, match=r"contains results on other data.*stored and now: test c and b\). Restore the"):
        check_same_data({"train": "a", "test": "c"}, {"train": "a", "test": "b"}, tmp_path)


def trained(folder: Any, data: Any, *options: str, **keywords: Any) -> dict[str, Any]:
    return clbench.run([*ON_DISK, f"data_dir={data}", *options], folder, quiet=True, **keywords)


@pytest.mark.slow
def test_a_run_is_not_resumed_or_loaded_with_other_data(tmp_path, monkeypatch):
    """With the data of the first task it is."""
    data, folder = write(tmp_path / "data"), tmp_path / "run"
    monkeypatch.setenv("CLBENCH_DATA_DIR", str(data))  # clbench.load does not read data from a folder that a file names
    metrics = trained(folder, data, "stop_after_task=1")
    assert metrics["data"]["fingerprint"] == read(partial(OnDisk, str(data))).fingerprint
    assert metrics["data"]["source_depends_on_seed"] is False
    killed = shutil.copytree(folder, tmp_path / "killed")  # as if the process was killed before it wrote metrics.json
    (killed / "metrics.json").unlink()
    write(data, two_labels)
    for path in (folder, killed):
        for call in (partial(trained, path, data), partial(clbench.load, path, trust=["tests"])):
            with pytest.raises(OtherRun, match="contains results on other data") as error:
                call()
            assert "\n" not in str(error.value) and str(path) in str(error.value)
    write(data)
    for path in (folder, killed):
        assert clbench.load(path, trust=["tests"]).task == 0
        assert trained(path, data)["status"] == "complete"


def test_a_complete_run_is_not_reused_for_other_data(tmp_path, capsys):
    data, folder = write(tmp_path / "data"), tmp_path / "run"
    metrics = trained(folder, data)
    assert trained(folder, data) == metrics
    shutil.rmtree(data)
    assert clbench.run([*ON_DISK, f"data_dir={data}"], folder) == metrics
    assert "already complete" in (out := capsys.readouterr().out) and "data could not be compared" in out
    write(data, first_pixel)
    with pytest.raises(OtherRun, match="contains results on other data"):
        trained(folder, data)
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    data, folder = write(tmp_path / "data"), tmp_path / "run"
    metrics = trained(folder, data, "stop_after_task=1")
    del metrics["data"]["fingerprint"], metrics["data"]["source_depends_on_seed"]
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    file = folder / "checkpoints/task_0.ckpt"
    state = torch.load(file, weights_only=True)
    del state["fingerprint"]
    torch.save(state, file)
    assert trained(folder, data)["status"] == "complete"


class Stopped(Exception):
    """Stands in for the death of a process."""


class StopOnce(L.Callback):
    """Stop the first fit of this process after three steps."""

    has_stopped = False

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3 and not StopOnce.has_stopped:
            StopOnce.has_stopped = True
            raise Stopped


@pytest.mark.slow
def test_a_mid_task_checkpoint_of_other_data_is_not_used(tmp_path):
    data, folder = write(tmp_path / "data"), tmp_path / "run"
    callback = "+trainer.callbacks=[{_target_: tests.data.test_fingerprint.StopOnce}]"
    options = ("save_every=1", "batch_size=8", "steps=6", callback)
    with pytest.raises(Stopped):
        trained(folder, data, *options)
    assert [file.name for file in folder.rglob("*.ckpt")] == ["mid_task_0.ckpt"] and not (
        folder / "metrics.json"
    ).exists()
    write(data, two_labels)
    with pytest.raises(OtherRun, match="contains results on other data"):
        trained(folder, data, *options)
    write(data)
    assert trained(folder, data, *options)["status"] == "complete"


@pytest.mark.slow
def test_first_tasks_on_other_data_are_not_shared(tmp_path):
    data = write(tmp_path / "data")
    keys = []
    for change, strategy in ((None, "ewc"), (None, "finetune"), (two_labels, "mas"), (None, "l2")):
        write(data, change)
        metrics = trained(tmp_path / strategy, data, f"strategy={strategy}", "batch_size=8", "steps=4", sweep=tmp_path)
        keys.append(metrics["shared_first_task"])
    assert keys[0] == keys[1] == keys[3] != keys[2]
    assert len(list((tmp_path / "shared_first_tasks").glob("*.ckpt"))) == 2


@pytest.mark.slow
def test_a_sweep_with_runs_on_other_data_is_refused(command, tmp_path):
    data = write(tmp_path / "data")
    sweep = ("-m", *ON_DISK, f"data_dir={data}", "strategy=finetune", "output_dir=sweep")
    go = partial(command, *sweep, imported=False, environment={"PYTHONPATH": str(Path(__file__).parents[2])})
    first = go("seed=0")
    assert first.returncode == 0, first.stderr
    write(data, two_labels)
    done = go("seed=0,1")
    assert done.returncode == 1 and len(list((tmp_path / "sweep").glob("*/metrics.json"))) == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "contains results on other data" in done.stderr


class OfSeed(Digits):
    """Digits whose first image depends on a seed."""

    def __init__(self, number: int = 0, train: bool = True) -> None:
        super().__init__(train=train)
        self.data[0] = number


@pytest.mark.slow
def test_a_source_that_depends_on_the_seed_is_known(tmp_path):
    source = ("data.source._target_=tests.data.test_fingerprint.OfSeed", "+data.source.number=${seed}")
    metrics = clbench.run([*SMALL, *source], tmp_path / "run", quiet=True)
    assert metrics["data"]["source_depends_on_seed"] is True


A, B = {"train": "a" * 16, "test": "b" * 16}, {"train": "a" * 16, "test": "c" * 16}


@pytest.mark.parametrize(
    ("of_seeds", "benchmarks"),
    [
        ([{"fingerprint": A}] * 3, 1),
        ([{"fingerprint": A}, {"fingerprint": A}, {"fingerprint": B}], 2),
        ([{"fingerprint": A}, {}, {"fingerprint": A}], 1),  # a run of an earlier version
        ([{"fingerprint": A}, {}, {"fingerprint": B}], 3),
        ([{"fingerprint": each, "source_depends_on_seed": True} for each in (A, B, A)], 1),
    ],
)
def test_reports_do_not_average_runs_on_other_data(of_seeds, benchmarks, tmp_path):
    """The name of a benchmark contains the fingerprint only if there are several."""
    for seed, about in enumerate(of_seeds):
        (found,) = (FINISHED_RUNS / "task_incremental").glob(f"finetune-seed{seed}-*")
        shutil.copytree(found, tmp_path / str(seed))
        metrics = json.loads((found / "metrics.json").read_text(encoding="utf-8"))
        data = {key: value for key, value in metrics["data"].items() if key not in about} | about
        (tmp_path / f"{seed}/metrics.json").write_text(json.dumps({**metrics, "data": data}), encoding="utf-8")
    names = clbench.read(tmp_path).benchmark
    assert names.nunique() == benchmarks
    marks = [f"data.fingerprint={'-'.join(about['fingerprint'].values())}" for about in of_seeds if about]
    assert sum(mark in name for mark in set(marks) for name in names) == (0 if benchmarks == 1 else len(marks))
