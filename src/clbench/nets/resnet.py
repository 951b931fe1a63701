"""The two reduced ResNet-18 of the continual-learning literature, a quarter to a third as wide as that of He et al. 2016."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from clbench.nets.cnn import image
from clbench.nets.initialize import initialize

STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``. If the shape changes, the shortcut is Conv 1x1 and BatchNorm.

    Args:
        inputs, outputs: Numbers of channels.
        stride: Stride of ``conv1`` and of the shortcut.
        last_relu: Whether a ReLU follows the sum.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, last_relu: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False), bn=nn.BatchNorm2d(outputs))
            )
        self.last: nn.Module = nn.ReLU() if last_relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))  # (N, outputs, H / stride, W / stride)
        outputs: Tensor = self.last(self.bn2(self.conv2(h)) + self.shortcut(x))
        return outputs


def resnet18_reduced(shape: Sequence[int], width: int = 20, init: str = "torch") -> nn.Sequential:
    """Return the reduced ResNet-18 of GEM and CTN, with ``width`` to 8 ``width`` channels and 8 ``width`` features.

    It follows model/common.py in the code of CTN (Pham et al. 2021): a stem of Conv 3x3 without bias, BatchNorm, ReLU and 3x3
    max-pooling with stride 2, two blocks per stage, and global average pooling. With 85 classes it has 1,106,825 parameters.

    Args:
        shape: Shape of one image, (C, H, W).
        width: Channels of the stem.
        init: Initial weights, see ``initialize``.

    Raises:
        ConfigError: ``init`` is unknown.
        ValueError: ``shape`` is not that of an image.

    Example:
        >>> resnet18_reduced((3, 32, 32), width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 32])
    """
    depth, _, _ = image(shape)
    stem = _stem(depth, width, bias=False)
    body = nn.Sequential(stem | {"maxpool": nn.MaxPool2d(3, 2, padding=1)} | _stages(width) | _pooling())
    initialize(body, init)
    return body


def resnet18_vandeven(shape: Sequence[int], width: int = 20, init: str = "torch") -> nn.Sequential:
    """Return the reduced ResNet-18 of van de Ven 2025, "On the computation of the Fisher information in continual learning".

    It has a stem of Conv 3x3 with bias, BatchNorm and ReLU without pooling, two blocks per stage, no ReLU after the last block,
    global average pooling and PyTorch's default initialisation. With 10 classes it has 1,094,770 parameters.

    Args:
        shape: Shape of one image, (C, H, W).
        width: Channels of the stem. There are 8 ``width`` features.
        init: Initial weights, see ``initialize``. The paper has ``torch``.

    Raises:
        ConfigError: ``init`` is unknown.
        ValueError: ``shape`` is not that of an image.

    Example:
        >>> resnet18_vandeven((3, 32, 32), width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 32])
    """
    depth, _, _ = image(shape)
    body = nn.Sequential(_stem(depth, width, bias=True) | _stages(width, last_relu=False) | _pooling())
    initialize(body, init)
    return body


def _stem(depth: int, width: int, bias: bool) -> OrderedDict[str, nn.Module]:
    conv = nn.Conv2d(depth, width, 3, padding=1, bias=bias)
    return OrderedDict(conv1=conv, bn1=nn.BatchNorm2d(width), relu=nn.ReLU())


def _stages(width: int, last_relu: bool = True) -> OrderedDict[str, nn.Module]:
    """Return four stages of two blocks. ``last_relu`` is that of the very last block."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = width
    for i, stride in enumerate(STRIDES):
        outputs = width * 2**i
        last = last_relu or i < len(STRIDES) - 1
        stages[f"layer{i + 1}"] = nn.Sequential(
            BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, last_relu=last)
        )
        inputs = outputs
    return stages


def _pooling() -> OrderedDict[str, nn.Module]:
    return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
