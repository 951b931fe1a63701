import pytest
import torch
from torchvision.transforms.v2.functional import InterpolationMode, rotate

from clbench.data.transforms import Rotation

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
