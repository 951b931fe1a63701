"""Bodies that others wrote: torchvision's models, and any module by dotted path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from clbench.nets.cnn import image


def torchvision_model(
    shape: Sequence[int], name: str = "resnet18", weights: str | None = None, **options: Any
) -> nn.Module:
    """A classification model of torchvision without its final linear layer.

    Images with one channel are repeated to the three that these models take.

    Args:
        shape: of one image, (1 or 3, H, W).
        name: as in ``torchvision.models.list_models()``.
        weights: None = random; ``DEFAULT`` or a name such as ``IMAGENET1K_V1`` = pretrained, downloaded when missing.
        options: of the model, for example ``norm_layer`` or ``dropout``.

    Raises:
        ValueError: unknown name or weights; a model without a final linear layer; weights that cannot be downloaded;
            other numbers of channels.
    """
    from torchvision.models import get_model  # takes long to import: only when it is used

    channels, _, _ = image(shape)
    if channels not in (1, 3):
        raise ValueError(f"torchvision's models take images with 1 or 3 channels, not {channels}")
    try:
        model: nn.Module = get_model(name, weights=weights, **options)
    except KeyError as error:
        raise ValueError(f"weights={weights} of {name} do not exist: DEFAULT takes the best, null none") from error
    except URLError as error:
        raise ValueError(
            f"weights={weights} of {name} could not be downloaded ({error.reason}): use weights=null, or set "
            "TORCH_HOME to a folder that has the file in hub/checkpoints"
        ) from error
    remove(model, last_linear(model))
    if channels == 1:
        model.register_forward_pre_hook(_three_channels)
    return model


def module_body(
    shape: Sequence[int], module: Callable[[], nn.Module], drop_layer: str | None = None, flatten: bool = False
) -> nn.Module:
    """``module()``: a body that finds out about its inputs by itself, or is told by arguments of its own.

    Args:
        shape: of one input; not passed on.
        module: makes it, for example ``partial(MyBody, width=3)``.
        drop_layer: name of a part to be replaced by the identity, for example the final classifier ``fc``.
        flatten: what it gives is flattened to (N, features).

    Raises:
        ValueError: there is no part ``drop_layer``; ``flatten`` is a word such as ``no``, which would count as true.
    """
    if not isinstance(flatten, bool):
        raise ValueError(f"flatten={flatten} is not true or false")
    body = module()
    if drop_layer is not None:
        remove(body, drop_layer)
    return nn.Sequential(body, nn.Flatten()) if flatten else body


def flatten_pixels(shape: Sequence[int]) -> nn.Flatten:
    """The inputs themselves as ``prod(shape)`` features: with a head on it, a linear model."""
    if prod(shape) < 1:
        raise ValueError(f"inputs of shape {tuple(shape)} are empty")
    return nn.Flatten()


def last_linear(model: nn.Module) -> str:
    """Name of the linear layer that was added last: the final classifier of torchvision's models.

    Raises:
        ValueError: there is none.
    """
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to take off: use net=module with net.drop_layer=NAME"
        )
    return str(names[-1])


def remove(model: nn.Module, name: str) -> None:
    """Put the identity in the place of the part ``name`` of ``model``.

    Raises:
        ValueError: there is no such part.
    """
    parts = dict(model.named_modules())
    if not name or name not in parts:
        there = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"{type(model).__name__} has no part {name!r}; it has {there}")
    parent, _, child = name.rpartition(".")
    setattr(parts[parent], child, nn.Identity())


def _three_channels(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = inputs[0]  # (N, 1, H, W) -> (N, 3, H, W)
    return (x.expand(-1, 3, -1, -1), *inputs[1:])
