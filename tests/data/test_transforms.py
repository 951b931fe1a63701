import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.v2.functional import InterpolationMode, rotate

from clbench.data import rotate as rotate_split
from clbench.data.source import read
from clbench.data.toy import Digits
from clbench.data.transforms import NearestRotation, Rotation
from clbench.errors import ConfigError

CPU = torch.device("cpu")


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1, 4])
@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_move_pixels_without_changing_them(quarters, side):
    x = images(3, 2, side, side)
    turned = Rotation.of(90 * quarters, side, side)(x)
    torch.testing.assert_close(turned, torch.rot90(x, quarters, (2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 9, 16)], ids=["square", "wide"])
@pytest.mark.parametrize("degrees", [17.0, 36.0, 133.0])
def test_a_rotation_is_that_of_torchvision(shape, degrees):
    x = images(*shape)
    expected = rotate(x, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(Rotation.of(degrees, *shape[-2:])(x), expected, atol=1e-5, rtol=0)


def test_a_rotation_keeps_the_precision_of_the_images():
    """The rotation is the same after it is moved to a device."""
    x = images(2, 1, 28, 28).float()
    view = Rotation.of(36, 28, 28)
    assert view(x).dtype == torch.float32
    assert torch.equal(view.to(CPU)(x), view(x))


@pytest.mark.parametrize("size", [8, 16, 27, 28], ids=lambda side: f"{side}x{side}")
def test_nearest_is_the_rotation_of_pil_to_the_pixel(size):
    """Digits of scikit-learn, enlarged by repeating pixels, at many angles and at quarter turns."""
    digits = np.kron(load_digits().images[:10], np.ones((4, 4))).astype(np.uint8)[:, :size, :size]
    x = torch.from_numpy(digits)[:, None]
    angles = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 720 - 360
    for degrees in [*angles.tolist(), *range(-180, 361, 15)]:
        expected = [np.array(Image.fromarray(d).rotate(degrees, resample=Image.Resampling.NEAREST)) for d in digits]
        found = NearestRotation.of(degrees, size, size)(x)[:, 0]
        assert torch.equal(found, torch.from_numpy(np.stack(expected))), degrees


def test_nearest_is_that_of_pil_for_images_that_are_not_square():
    picture = torch.arange(1, 9 * 16 + 1, dtype=torch.uint8).view(1, 1, 9, 16)
    for degrees in (17.0, 36.0, 133.0, 271.5):
        expected = np.array(Image.fromarray(picture[0, 0].numpy()).rotate(degrees, resample=Image.Resampling.NEAREST))
        assert torch.equal(NearestRotation.of(degrees, 9, 16)(picture)[0, 0], torch.from_numpy(expected)), degrees


def test_the_split_takes_the_interpolation():
    """Bilinear is the default."""
    digits = read(Digits)
    kinds = [type(rotate_split(digits, angles=[0, 30], **more)[1].view) for more in ({}, {"interpolation": "nearest"})]
    assert kinds == [Rotation, NearestRotation]
    with pytest.raises(ConfigError, match="^interpolation=cubic: expected one of bilinear, nearest, got 'cubic'"):
        rotate_split(digits, interpolation="cubic")
