"""Neuron calibration (Yin, Yang and Li 2021): a few parameters, added to the layers of any net, that rescale it.

A calibrated layer computes

    weights    theta~ = tile(psi) * theta                      WCM; tiled over inputs (Linear) or the kernel (Conv)
    features   h~ = (1 + scale) * (layer(x; theta~) + shift)   FCM; tiled over batch and positions, shift on Conv only

Initially psi = 1, scale = 0 and shift = 0, so adding calibration changes nothing. theta is still the layer's parameter
``weight``. The attribute ``layer.weight`` returns theta~, and writing to it (``nn.init``, ``reset_parameters``) has no effect.
theta is also available as ``layer.theta``.

The residual form h + scale * h is that of the paper (eq. 4, Omega_lambda(h) (+) h) with lambda = 0 initially. The published code
multiplies by f, initially 1. Both are the same function and follow the same trajectory under SGD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clbench.params import Params

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Types of layers that can be calibrated."""


class Calibration(nn.Module):
    """The calibration of one layer, stored as its submodule ``calibration``.

    Args:
        weight: Weight of the layer, (O, I) of a Linear layer or (O, I, *kernel) of a convolution.
        weights, features: Whether to calibrate weights and features. Otherwise psi, or scale and shift, are None.

    Attributes:
        psi: (O, 1) for a Linear layer, one per neuron. (O, I, 1, ...) for a convolution, one per pair of channels.
        scale: lambda, one per neuron or channel, (O,) or (O, 1, ...) so that it broadcasts over features.
        shift: One per channel of a convolution, with the shape of ``scale``. None for a Linear layer, which has a bias.
    """

    def __init__(self, weight: Tensor, weights: bool = True, features: bool = True) -> None:
        super().__init__()
        outputs, *rest = weight.shape
        inputs, ones = (1, []) if weight.ndim == 2 else (rest[0], [1] * (weight.ndim - 2))
        self.psi = nn.Parameter(weight.new_ones(outputs, inputs, *ones)) if weights else None
        self.scale = nn.Parameter(weight.new_zeros(outputs, *ones)) if features else None
        self.shift = nn.Parameter(weight.new_zeros(outputs, *ones)) if features and ones else None

    def weight(self, theta: Tensor) -> Tensor:
        """Return theta~."""
        return theta if self.psi is None else self.psi * theta

    def forward(self, h: Tensor) -> Tensor:
        """Return h~ of features h, (..., O) of a Linear layer or (N, O, *positions) of a convolution."""
        if self.shift is not None:
            h = h + self.shift
        return h if self.scale is None else torch.addcmul(h, self.scale, h)


class Calibrated(nn.Module):
    """Mixin for the class of a calibrated layer.

    Attributes:
        cached: theta~ inside ``cached_weights``, else None.
    """

    calibration: Calibration
    cached: Tensor | None = None
    _unused_hook: RemovableHandle

    @property
    def theta(self) -> Tensor:
        """The weight that is calibrated."""
        theta = self._parameters["weight"]
        assert theta is not None
        return theta

    @property
    def weight(self) -> Tensor:
        """theta~."""
        return self.calibration.weight(self.theta) if self.cached is None else self.cached

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.calibration.forward(super().forward(*args, **kwargs))

    def psi_gradient(self, gradient: Tensor) -> Tensor:
        """Return dL/dpsi, the sum of theta * dL/dtheta~ over the dimensions that psi is tiled over.

        Args:
            gradient: dL/dtheta~, which is overwritten.
        """
        assert self.calibration.psi is not None
        return gradient.mul_(self.theta.detach()).sum_to_size(self.calibration.psi.shape)


class CalibratedNeurons(Calibrated):
    """A calibrated Linear layer. psi is one number per neuron and can multiply its output, so theta~ is not computed.

    psi * x theta^T + bias = psi * (x theta^T + bias) + (1 - psi) * bias, exact at psi = 1.
    """

    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if self.cached is not None or self.calibration.psi is None:
            return super().forward(x)
        psi = self.calibration.psi[:, 0]
        h = nn.functional.linear(x, self.theta, self.bias)
        return self.calibration.forward(psi * h if self.bias is None else torch.addcmul((1 - psi) * self.bias, psi, h))


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of ``net`` that can be calibrated, by name.

    The output layer of nn.MultiheadAttention is not among them, because it is never called and only its weight is read.
    """
    never_called = nn.modules.linear.NonDynamicallyQuantizableLinear
    return {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, LAYERS) and not isinstance(layer, never_called)
    }


def calibrated(net: nn.Module) -> dict[str, Calibrated]:
    """Return the calibrated layers of ``net``, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, Calibrated)}


def calibration(net: nn.Module) -> Params:
    """Return the calibration parameters of ``net`` by name (not copies): psi, scale and shift of every calibrated layer."""
    return {
        f"{name}.calibration.{kind}".removeprefix("."): p
        for name, layer in calibrated(net).items()
        for kind, p in layer.calibration.named_parameters()
    }


def calibrate(
    net: nn.Module, names: Iterable[str] | None = None, *, weights: bool = True, features: bool = True
) -> None:
    """Add calibration to layers of ``net``, in place.

    A calibrated net can be copied and saved as a state_dict, but not pickled.

    Args:
        net: Any module.
        names: Names of the layers, among ``layers(net)``. None selects all.
        weights: Whether to calibrate weights (WCM).
        features: Whether to calibrate features (FCM).

    Raises:
        ValueError: There is no such layer, it is already calibrated, or its weight is not a parameter of the layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> calibrate(net)
        >>> sum(p.numel() for p in calibration(net).values())  # psi and scale, one of each per neuron
        6
    """
    available = layers(net)
    chosen = list(available) if names is None else list(names)
    for name in chosen:
        if name not in available:
            raise ValueError(f"{name!r}: expected a Linear or convolutional layer. Try one of {', '.join(available)}")
        if isinstance(available[name], Calibrated) or available[name]._parameters.get("weight") is None:
            raise ValueError(f"layer {name!r} is already calibrated, or its weight is not a parameter of the layer")
    for name in chosen:
        layer = available[name]
        layer.register_module("calibration", Calibration(layer._parameters["weight"], weights, features))  # type: ignore[arg-type]
        layer.__class__ = _calibrated_class(type(layer))  # type: ignore[arg-type]
        layer._unused_hook = layer.register_forward_hook(_unused_hook)  # type: ignore[assignment]


def remove(net: nn.Module) -> None:
    """Remove all calibration from ``net``. It is then the net it was, with the current values of theta."""
    for layer in calibrated(net).values():
        layer._unused_hook.remove()
        del layer._unused_hook
        del layer._modules["calibration"]
        layer.__class__ = type(layer).__bases__[1]


@contextmanager
def cached_weights(layers: Sequence[Calibrated]) -> Iterator[list[Tensor]]:
    """Compute theta~ of ``layers`` once for all forward passes inside the block, and yield them.

    The tensors are part of the graph, so gradients with respect to them can be computed.
    """
    try:
        for layer in layers:
            layer.cached = layer.weight
        yield [layer.weight for layer in layers]
    finally:
        for layer in layers:
            layer.cached = None


def _unused_hook(layer: nn.Module, inputs: Any, output: Any) -> None:
    """Do nothing. In eval mode nn.TransformerEncoderLayer calls a layer only if it has a hook, else it reads its weight."""


@cache
def _calibrated_class(kind: Any) -> Any:
    first = CalibratedNeurons if kind.forward is nn.Linear.forward else Calibrated
    return type(f"Calibrated{kind.__name__}", (first, kind), {"__module__": kind.__module__})
