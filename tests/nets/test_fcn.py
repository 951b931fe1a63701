"""The fully convolutional net fcn, also on the masks of digits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.data.digit_masks import STYLES, DigitMasks
from clbench.importance import fisher
from clbench.nets import fcn
from tests import references
from tests.conftest import others_slow


def test_a_feature_depends_on_the_neighbourhood_only():
    net = fcn((1, 9, 9), channels=(3, 4)).double()
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    changed = x.clone()
    changed[0, 0, 4, 4] += 1
    difference = (net(changed) - net(x)).abs().sum((0, 1)) > 0
    assert difference[2:7, 2:7].any() and not difference[:2].any() and not difference[:, 7:].any()


def test_importance_equals_the_loop_over_examples():
    torch.manual_seed(0)
    net = nn.Sequential(fcn((1, 3, 4), channels=(2, 3)), nn.Conv2d(3, 2, 1)).double()
    x, y = torch.randn(3, 1, 3, 4, dtype=torch.float64), torch.randint(2, (3, 3, 4))
    expected = []
    for i in range(len(x)):
        found = references.gradients(net, F.cross_entropy(net(x[i : i + 1]), y[i : i + 1], reduction="sum"))
        expected.append({name: g.square() for name, g in found.items()})
    result = fisher(net, [(x, y)], labels="empirical")
    for name, value in references.mean(expected).items():
        torch.testing.assert_close(result[name], value, rtol=1e-10, atol=1e-12)


def test_a_wrong_shape_or_option_is_one_line():
    with pytest.raises(ValueError, match="this net needs images"):
        fcn((64,))
    with pytest.raises(ValueError, match=r"channels=\[\]: expected at least one number"):
        fcn((1, 8, 8), channels=[])


def overlap(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the intersection over union of the pixels of the digits."""
    found = net(x).argmax(1)
    return float((found & y).sum() / (found | y).sum())


def part(style: str, train: bool) -> tuple[Tensor, Tensor]:
    source = DigitMasks(style, train=train)
    return torch.from_numpy(source.data)[:, None] / 16, torch.from_numpy(source.targets)


@pytest.mark.parametrize("style", others_slow(STYLES, "plain", "inverted"))
def test_a_net_finds_digits_of_its_style_only(style):
    torch.manual_seed(0)
    net = nn.Sequential(fcn((1, 12, 12), channels=(16, 16, 16)), nn.Conv2d(16, 2, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = part(style, train=True)
    for _ in range(100):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    assert overlap(net, *part(style, train=False)) > 0.7
    others = [overlap(net, *part(other, train=False)) for other in STYLES if other != style]
    assert max(others) < 0.6, others
