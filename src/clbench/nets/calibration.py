"""Neuron calibration (Yin, Yang and Li 2021): few parameters, put onto the layers of any net from outside, that rescale
its weights and its features.

A calibrated layer computes

    weights    theta~ = tile(psi) * theta                      WCM; tiled over inputs (Linear) or the kernel (Conv)
    features   h~ = (1 + scale) * (layer(x; theta~) + shift)   FCM; tiled over batch and positions, shift on Conv only

psi = 1, scale = 0 and shift = 0 at first, so nothing changes when it is put on. theta stays the parameter ``weight`` of the
layer, under its name; ``layer.weight`` read as an attribute is theta~, and writing into that (``nn.init``,
``reset_parameters``) changes nothing: theta is ``layer.theta``.

The residual form h + scale * h is that of the paper (eq. 4: Omega_lambda(h) (+) h) with lambda = 0 at first. The code that
circulates multiplies by f = 1 at first, which is the same function and the same trajectory under SGD.
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
    """What calibrates one layer; the part ``calibration`` of it.

    Args:
        weight: of the layer, (O, I) of a Linear layer, (O, I, *kernel) of a convolution.
        weights, features: calibrate these; else psi, or scale and shift, are None.

    Attributes:
        psi: (O, 1) of a Linear layer, one per neuron; (O, I, 1, ...) of a convolution, one per pair of channels.
        scale: lambda, one per neuron or channel, (O,) or (O, 1, ...) as it is broadcast over features.
        shift: the same, of a convolution; None of a Linear layer, which has a bias.
    """

    def __init__(self, weight: Tensor, weights: bool = True, features: bool = True) -> None:
        super().__init__()
        outputs, *rest = weight.shape
        inputs, ones = (1, []) if weight.ndim == 2 else (rest[0], [1] * (weight.ndim - 2))
        self.psi = nn.Parameter(weight.new_ones(outputs, inputs, *ones)) if weights else None
        self.scale = nn.Parameter(weight.new_zeros(outputs, *ones)) if features else None
        self.shift = nn.Parameter(weight.new_zeros(outputs, *ones)) if features and ones else None

    def weight(self, theta: Tensor) -> Tensor:
        """theta~."""
        return theta if self.psi is None else self.psi * theta

    def forward(self, h: Tensor) -> Tensor:
        """h~ of features h, (..., O) of a Linear layer, (N, O, *positions) of a convolution."""
        if self.shift is not None:
            h = h + self.shift
        return h if self.scale is None else torch.addcmul(h, self.scale, h)


class Calibrated(nn.Module):
    """Goes before the class of a layer that is calibrated.

    Attributes:
        held: theta~ while ``cached_weights`` holds it.
    """

    calibration: Calibration
    held: Tensor | None = None
    _called: RemovableHandle

    @property
    def theta(self) -> Tensor:
        """The weight that is calibrated."""
        theta = self._parameters["weight"]
        assert theta is not None
        return theta

    @property
    def weight(self) -> Tensor:
        """theta~."""
        return self.calibration.weight(self.theta) if self.held is None else self.held

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.calibration.forward(super().forward(*args, **kwargs))

    def psi_gradient(self, gradient: Tensor) -> Tensor:
        """dL/dpsi of dL/dtheta~, which is overwritten: the sum of theta * dL/dtheta~ over what psi is tiled over."""
        assert self.calibration.psi is not None
        return gradient.mul_(self.theta.detach()).sum_to_size(self.calibration.psi.shape)


class CalibratedNeurons(Calibrated):
    """A Linear layer: psi is one number per neuron, so it can multiply the neuron's sum, and theta~ is not formed.

    psi * x theta^T + bias = psi * (x theta^T + bias) + (1 - psi) * bias, exact at psi = 1.
    """

    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if self.held is not None or self.calibration.psi is None:
            return super().forward(x)
        psi = self.calibration.psi[:, 0]
        h = nn.functional.linear(x, self.theta, self.bias)
        return self.calibration.forward(psi * h if self.bias is None else torch.addcmul((1 - psi) * self.bias, psi, h))


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``net`` that can be calibrated, by name.

    Not the output layer of nn.MultiheadAttention: it is never called, only its weight is read.
    """
    never_called = nn.modules.linear.NonDynamicallyQuantizableLinear
    return {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, LAYERS) and not isinstance(layer, never_called)
    }


def calibrated(net: nn.Module) -> dict[str, Calibrated]:
    """The layers of ``net`` that are calibrated, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, Calibrated)}


def calibration(net: nn.Module) -> Params:
    """The parameters of the calibration of ``net``, live, by name: psi, scale and shift of every calibrated layer."""
    return {
        f"{name}.calibration.{kind}".removeprefix("."): p
        for name, layer in calibrated(net).items()
        for kind, p in layer.calibration.named_parameters()
    }


def calibrate(
    net: nn.Module, names: Iterable[str] | None = None, *, weights: bool = True, features: bool = True
) -> None:
    """Put calibration onto layers of ``net``, in place. Such a net is copied and saved by its state_dict, not pickled whole.

    Args:
        net: any module.
        names: of the layers, among ``layers(net)``; None = all of them.
        weights: calibrate weights (WCM).
        features: calibrate features (FCM).

    Raises:
        ValueError: there is no such layer; it is calibrated already, or its weight is not a parameter of its own.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> calibrate(net)
        >>> sum(p.numel() for p in calibration(net).values())  # psi and scale, one of each per neuron
        6
    """
    there = layers(net)
    chosen = list(there) if names is None else list(names)
    for name in chosen:
        if name not in there:
            raise ValueError(f"{name!r} is not a Linear or convolutional layer; those are {', '.join(there)}")
        if isinstance(there[name], Calibrated) or there[name]._parameters.get("weight") is None:
            raise ValueError(f"layer {name!r} is calibrated already, or its weight is not a parameter of its own")
    for name in chosen:
        layer = there[name]
        layer.register_module("calibration", Calibration(layer._parameters["weight"], weights, features))  # type: ignore[arg-type]
        layer.__class__ = _calibrated_class(type(layer))  # type: ignore[arg-type]
        layer._called = layer.register_forward_hook(_called)  # type: ignore[assignment]


def remove(net: nn.Module) -> None:
    """Take all calibration off: ``net`` is what it was, with the values that theta has now."""
    for layer in calibrated(net).values():
        layer._called.remove()
        del layer._called
        del layer._modules["calibration"]
        layer.__class__ = type(layer).__bases__[1]


@contextmanager
def cached_weights(layers: Sequence[Calibrated]) -> Iterator[list[Tensor]]:
    """theta~ of ``layers``, computed once for all passes inside: tensors of the graph, to differentiate with respect to."""
    try:
        for layer in layers:
            layer.held = layer.weight
        yield [layer.weight for layer in layers]
    finally:
        for layer in layers:
            layer.held = None


def _called(layer: nn.Module, inputs: Any, output: Any) -> None:
    """Nothing; but nn.TransformerEncoderLayer, which in eval mode only reads a layer's weight, calls one that has a hook."""


@cache
def _calibrated_class(kind: Any) -> Any:
    first = CalibratedNeurons if kind.forward is nn.Linear.forward else Calibrated
    return type(f"Calibrated{kind.__name__}", (first, kind), {"__module__": kind.__module__})
