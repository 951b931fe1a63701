"""Existing modules as bodies: models of torchvision, and any module by its dotted path."""

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
    """Return a classification model of torchvision without its final linear layer.

    Images with one channel are expanded to the three that these models take.

    Args:
        shape: Shape of one image, (1 or 3, H, W).
        name: A name from ``torchvision.models.list_models()``.
        weights: None for random weights. ``DEFAULT`` or a name such as ``IMAGENET1K_V1`` for pretrained ones, which are
            downloaded if they are missing.
        options: Options of the model, for example ``norm_layer`` or ``dropout``.

    Raises:
        ValueError: The name or the weights are unknown, the model has no final linear layer, the weights cannot be downloaded,
            or the number of channels is neither 1 nor 3.

    Example:
        >>> body = torchvision_model((1, 32, 32), "resnet18")
        >>> body(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 512])
    """
    from torchvision.models import get_model  # imported only if used, because the import is slow

    channels, _, _ = image(shape)
    if channels not in (1, 3):
        raise ValueError(f"images for a torchvision model: expected 1 or 3 channels, got {channels}")
    try:
        model: nn.Module = get_model(name, weights=weights, **options)
    except KeyError as error:
        raise ValueError(
            f"weights={weights}: expected weights of {name}. Try DEFAULT, or null for random weights"
        ) from error
    except URLError as error:
        raise ValueError(
            f"weights={weights} of {name} could not be downloaded ({error.reason}). Use weights=null, or set "
            "TORCH_HOME to a folder with the file in hub/checkpoints"
        ) from error
    replace_by_identity(model, last_linear(model))
    if channels == 1:
        model.register_forward_pre_hook(_three_channels)
    return model


def module_body(
    shape: Sequence[int], module: Callable[[], nn.Module], drop_layer: str | None = None, flatten: bool = False
) -> nn.Module:
    """Return ``module()`` as a body, for modules that do not take the shape of an input.

    Args:
        shape: Shape of one input. It is not passed on.
        module: Returns the module, for example ``partial(MyBody, width=3)``.
        drop_layer: Name of a part to replace by the identity, for example the final classifier ``fc``.
        flatten: Whether to flatten the output to (N, features).

    Raises:
        ValueError: There is no part ``drop_layer``, or ``flatten`` is not a bool. A word such as ``no`` would count as true.

    Example:
        >>> body = module_body((3,), lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 10)), drop_layer="1")
        >>> body(torch.zeros(2, 3)).shape
        torch.Size([2, 4])
    """
    if not isinstance(flatten, bool):
        raise ValueError(f"flatten={flatten}: expected true or false, got {flatten!r}")
    body = module()
    if drop_layer is not None:
        replace_by_identity(body, drop_layer)
    return nn.Sequential(body, nn.Flatten()) if flatten else body


def flatten_pixels(shape: Sequence[int]) -> nn.Flatten:
    """Return a body that flattens the inputs to ``prod(shape)`` features. With a head it is a linear model.

    Raises:
        ValueError: Inputs of ``shape`` are empty.

    Example:
        >>> flatten_pixels((1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
    """
    if prod(shape) < 1:
        raise ValueError(f"inputs: expected at least one number, got shape {tuple(shape)}")
    return nn.Flatten()


def last_linear(model: nn.Module) -> str:
    """Return the name of the linear layer that was added last, the final classifier in models of torchvision.

    Raises:
        ValueError: There is none.
    """
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to remove. Use net=module with net.drop_layer=NAME"
        )
    return str(names[-1])


def replace_by_identity(model: nn.Module, name: str) -> None:
    """Replace the part ``name`` of ``model`` by the identity.

    Raises:
        ValueError: There is no such part.
    """
    parts = dict(model.named_modules())
    if not name or name not in parts:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"drop_layer={name}: expected a part of {type(model).__name__}. Try one of {children}")
    parent, _, child = name.rpartition(".")
    setattr(parts[parent], child, nn.Identity())


def _three_channels(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = inputs[0]  # (N, 1, H, W) -> (N, 3, H, W)
    return (x.expand(-1, 3, -1, -1), *inputs[1:])
