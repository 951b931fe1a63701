import gzip
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision

from clbench.data.source import read
from clbench.data.toy import Digits
from clbench.errors import ConfigError


class MNIST(torchvision.datasets.MNIST):
    """MNIST with an unreachable mirror, so that the tests are offline everywhere."""

    mirrors = ("http://127.0.0.1:9/",)


class Signs:
    """Data set with labels -1 and 1, or with a class that has only test examples."""

    def __init__(self, train=True, labels=(-1, 1), unseen=1):
        self.data = np.zeros((4, 2, 2), np.uint8)
        self.targets = [*labels, labels[0], labels[1] if train else unseen]


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, r"got \[-1\] in the training set"), ({"labels": (0, 1), "unseen": 7}, r"got \[7\] in the test set")],
)
def test_labels_of_no_class_with_training_examples_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        read(partial(Signs, **options))


class Pictures:
    """Data set of random images of a shape with labels 0, 1, 2, 0, ..."""

    def __init__(self, shape, targets=None, dtype=np.uint8, train=True, download=False):
        examples = 6 if train else 3
        self.data = np.random.default_rng(train).integers(0, 255, (examples, *shape)).astype(dtype)
        self.targets = [k % 3 for k in range(examples if targets is None else targets)]


def idx(path: Path, array: np.ndarray) -> None:
    """Write the idx format of MNIST: 0, 0, type, number of dimensions, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path):
    """Return a folder with 20 training and 10 test images in the files of MNIST."""
    for prefix, examples in (("train", 20), ("t10k", 10)):
        numbers = np.arange(examples)
        images = np.broadcast_to(numbers[:, None, None], (examples, 28, 28))
        idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images)
        idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", numbers % 10)
    return tmp_path


def test_a_torchvision_data_set_is_read_into_uint8_tensors(mnist):
    source = read(partial(MNIST, root=str(mnist)))
    assert (source.name, source.classes) == ("MNIST", 10)
    assert source.train.x.shape == (20, 1, 28, 28)
    assert source.test.x.shape == (10, 1, 28, 28)
    assert source.train.x.dtype == torch.uint8
    assert source.train.y.dtype == torch.int64
    assert source.train.x[:, 0, 3, 4].tolist() == list(range(20))
    assert source.train.y.tolist() == [*range(10), *range(10)]


def test_missing_data_offline_name_data_set_folder_and_remedy(tmp_path):
    root = tmp_path / "empty"
    with pytest.raises(ConfigError) as error:
        read(partial(MNIST, root=str(root)))
    message = str(error.value)
    assert message.startswith(f"data set MNIST is not in {root} and could not be downloaded (")
    assert "Copy it there, set data_dir, or connect to the network" in message
    assert "data=permuted_digits and data=split_digits need no download" in message
    assert "\n" not in message


def test_a_missing_data_set_without_a_root_asks_for_one():
    def missing(train, download):
        raise RuntimeError("Dataset not found. You can use download=True to download it")

    with pytest.raises(ConfigError, match="data set missing not found, .* Set root=..."):
        read(missing)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("left", [0.5, 0], ids=["half", "empty"])
def test_a_truncated_file_is_reported_and_not_overwritten(mnist, name, left):
    """The data set is not downloaded over a file that cannot be read."""
    file = mnist / "MNIST" / "raw" / name
    whole = file.read_bytes()
    short = whole[: int(len(whole) * left)]
    file.write_bytes(short)
    with pytest.raises(ConfigError) as error:
        read(partial(MNIST, root=str(mnist)))
    message = str(error.value)
    assert message.startswith(f"data set MNIST in {mnist} cannot be read, a file may be truncated (")
    assert message.endswith("Delete it, and the next run downloads it again.")
    assert "\n" not in message
    assert file.read_bytes() == short


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(mnist, monkeypatch):
    """Return the address of a local web server with the packed files of ``mnist``, and their names."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = mnist / "mirror"
    folder.mkdir()
    for file in (mnist / "MNIST" / "raw").iterdir():
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", sorted(file.name for file in folder.iterdir())
        server.shutdown()


def test_missing_data_are_downloaded_once_into_the_root(tmp_path, mirror):
    """Later reads use the files in the root."""

    class MNIST(torchvision.datasets.MNIST):
        mirrors = (mirror[0],)
        resources = tuple((name, None) for name in mirror[1])

    root = tmp_path / "deep" / "root"
    source = read(partial(MNIST, root=str(root)))
    assert source.train.y.tolist() == [*range(10), *range(10)]
    MNIST.mirrors = ("http://127.0.0.1:9/",)
    assert torch.equal(read(partial(MNIST, root=str(root))).train.x, source.train.x)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((5, 4), (1, 5, 4)), ((5, 4, 3), (3, 5, 4)), ((5, 4, 1), (1, 5, 4))],
    ids=["gray", "colour", "one"],
)
def test_images_are_laid_out_channels_first(shape, layout):
    data = Pictures(shape).data.reshape(6, 5, 4, -1)
    x = read(partial(Pictures, shape)).train.x
    assert x.shape == (6, *layout)
    assert x.is_contiguous()
    for c in range(layout[0]):
        assert np.array_equal(x[:, c].numpy(), data[..., c])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (7,), "dtype": bool}, "(N, F), got bool data (6, 7). "),
        ({"shape": (2, 2, 2, 2)}, "(N, F), got uint8 data (6, 2, 2, 2, 2). "),
        (
            {"shape": (2, 2), "dtype": np.float32},
            "(N, F), got float32 data (6, 2, 2). Convert pixels in [0, 1] with",
        ),
        ({"shape": (2, 2), "targets": 5}, "got 5 labels for 6 images. Make their numbers equal."),
    ],
)
def test_data_of_an_unknown_form_are_described(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(partial(Pictures, **options))


def test_the_digits_need_no_folder_and_have_disjoint_parts():
    """No image is in both the training and the test part."""
    source = read(Digits)
    assert (len(source.train.y), len(source.test.y), source.classes) == (1437, 360, 10)
    assert source.train.x.shape[1:] == (1, 8, 8)
    assert int(source.train.x.max()) == 16
    train, test = ({tuple(x) for x in images.x.flatten(1).tolist()} for images in (source.train, source.test))
    assert not train & test


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_the_real_data_have_60000_training_and_10000_test_images(real_data, name):
    source = read(partial(getattr(torchvision.datasets, name), root=str(real_data)))
    assert (source.train.x.shape, source.test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert source.classes == 10
