from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor

from clbench.data import TaskSequence, chain
from clbench.data.conversion import Conversion
from clbench.data.images import Images, Streamed
from clbench.data.source import read
from clbench.errors import ConfigError

PIXELS = {part: np.random.default_rng(part).integers(0, 256, (12, 6, 5, 3)).astype(np.uint8) for part in (0, 1)}


class Pictures:
    """Data set without arrays, with images ``form(array)`` and labels 0, 1, 2, 0, ..."""

    def __init__(self, form, train=True, download=False):
        self.form, self.pixels = form, PIXELS[train]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, row):
        if row >= len(self):
            raise IndexError(row)
        return self.form(self.pixels[row]), row % 3


class ArrayPictures:
    """The same data set with arrays, as torchvision's CIFAR10."""

    def __init__(self, channels_first=False, attribute="targets", train=True, download=False):
        self.data = PIXELS[train].transpose(0, 3, 1, 2) if channels_first else PIXELS[train]
        setattr(self, attribute, [row % 3 for row in range(12)])


def as_uint8_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def varying(array):
    return Image.fromarray(array[: 3 + array[0, 0, 0] % 3])


class Rows:
    """The same data set as a Hugging Face one: dictionaries, and columns by name."""

    column_names = ("img", "fine_label", "coarse_label")

    def __init__(self, train=True):
        self.column_names, self.pictures = list(self.column_names), Pictures(Image.fromarray, train)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, key):
        if isinstance(key, str):
            return [self[row][key] for row in range(len(self))]
        image, label = self.pictures[key]
        return {"img": image, "fine_label": label, "coarse_label": 0}


def dictionaries(train=True):
    return [{"id": row, "pixel_values": array, "y": row % 3} for row, array in enumerate(PIXELS[train])]


def dictionary_of_arrays(train=True):
    return {"x": PIXELS[train], "label": [row % 3 for row in range(12)], "name": ["a"] * 12}


FORMS = [Image.fromarray, to_tensor, as_uint8_tensor, np.asarray]
same_images = [partial(Pictures, form) for form in FORMS] + [
    ArrayPictures,
    partial(ArrayPictures, channels_first=True),
    partial(ArrayPictures, attribute="labels"),
    *(Rows, dictionaries, dictionary_of_arrays),
]


class OneToThree(ArrayPictures):
    """Data set with labels 1, 2, 3 in its arrays that returns labels 0, 1, 2."""

    def __init__(self, transform=None, train=True, download=False):
        super().__init__(train=train)
        self.targets = [label + 1 for label in self.targets]
        self.transform, self.target_transform = transform, lambda label: label - 1

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        image = Image.fromarray(self.data[row])
        return image if self.transform is None else self.transform(image), self.target_transform(self.targets[row])


@pytest.mark.parametrize("transform", [None, to_tensor])
@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "streamed"])
def test_labels_are_those_of_the_data_set(transform, limit):
    source = read(partial(OneToThree, transform), memory_limit=limit, workers=0)
    assert source.train.y.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("factory", same_images)
def test_images_of_every_form_are_read_to_the_same_bytes(factory, limit):
    source = read(factory, memory_limit=limit, workers=0)
    assert isinstance(source.train, Images if limit is None else Streamed)
    assert (source.classes, source.train.shape) == (3, (3, 6, 5))
    for images, part in ((source.train, 1), (source.test, 0)):
        (x,) = images.batches([torch.arange(12)])
        assert x.dtype == torch.uint8
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), PIXELS[part])
        assert images.y.tolist() == [row % 3 for row in range(12)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": 1, "img": 2, "label": 0},
            "one column of images, .* got the columns image, img, label. Rename the column",
        ),
        ({"image": 1, "kind": 0}, "one column of labels, named label, .* got the columns image, kind"),
    ],
)
def test_columns_with_several_readings_are_refused(columns, message):
    with pytest.raises(ConfigError, match=message):
        read(lambda train: [columns])
    with pytest.raises(ConfigError, match=message):
        read(lambda train: columns)


def test_a_missing_key_is_named():
    class Keyed:
        def __len__(self):
            return 3

        def __getitem__(self, row):
            return {}["pixels"]

    with pytest.raises(ConfigError, match="got KeyError 'pixels' for i=0"):
        read(lambda train: Keyed())


def test_a_transform_of_the_data_set_is_applied_once():
    class Flipped(Pictures):
        def __init__(self, train=True, download=False):
            super().__init__(Image.fromarray, train)
            self.data, self.targets, self.transform = self.pixels, list(range(12)), "in form"
            self.form = lambda array: Image.fromarray(array[:, ::-1].copy())

    x = read(Flipped).train.x
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), PIXELS[1][:, :, ::-1])


@pytest.mark.parametrize("factory", [partial(Pictures, Image.fromarray), ArrayPictures])
@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "streamed"])
def test_resized_images_are_those_of_torchvision(factory, limit):
    (x,) = read(factory, Conversion.of([9, 4]), memory_limit=limit, workers=0).train.batches([torch.arange(12)])
    expected = v2.functional.resize(torch.from_numpy(PIXELS[1]).permute(0, 3, 1, 2), [9, 4], antialias=True)
    assert torch.equal(x, expected)


def test_images_of_different_shapes_need_resizing():
    """Without ``resize`` they are refused with an error that names it."""
    with pytest.raises(
        ConfigError, match=r"data set Pictures: expected images of one shape.* for image \d+. Set resize=\[H,W\]"
    ):
        read(partial(Pictures, varying))
    assert read(partial(Pictures, varying), Conversion.of(4)).train.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda a: to_tensor(a) * 4 - 2, "Normalise with mean=... and std=..."),
        (lambda a: "a.png", "floats in .0, 1., got str for image 0"),
    ],
)
def test_an_invalid_image_is_described(form, message):
    with pytest.raises(ConfigError, match=message):
        read(partial(Pictures, form))


def test_palettes_and_single_bits_are_read_as_colours_and_greys():
    assert read(partial(Pictures, lambda a: Image.fromarray(a).convert("P"))).train.shape == (3, 6, 5)
    bits = read(partial(Pictures, lambda a: Image.fromarray(a).convert("1"))).train
    assert bits.shape == (1, 6, 5)
    assert set(bits.x.flatten().tolist()) == {0, 255}


@pytest.mark.parametrize("resize", [0, [3], [2, 2, 2]])
def test_an_invalid_size_is_refused(resize):
    with pytest.raises(ConfigError, match="resize=.*: expected a side, or a height and a width"):
        TaskSequence(ArrayPictures, chain, resize=resize)
