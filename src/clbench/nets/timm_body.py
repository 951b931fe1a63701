"""Models of timm as bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clbench.config.known_names import suggest
from clbench.errors import ConfigError
from clbench.nets.cnn import image


def timm_model(shape: Sequence[int], name: str = "resnet18", pretrained: bool = False, **options: Any) -> nn.Module:
    """Return a model of timm without its classifier, a body from images (N, C, H, W) to features (N, F).

    Args:
        shape: Shape of one image, (C, H, W). timm adapts the first layer to C channels.
        name: A name from ``timm.list_models()``, also with the tag of pretrained weights: ``resnet18.a1_in1k``.
        pretrained: Whether to use pretrained weights, which are downloaded if they are missing.
        options: Options of the model, for example ``img_size`` or ``drop_path_rate``.

    Raises:
        ConfigError: timm is not installed, there is no such model or it has no pretrained weights, or the weights cannot be
            downloaded.

    Example:
        >>> body = timm_model((1, 32, 32), "test_resnet")
        >>> body(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 96])
    """
    channels, _, _ = image(shape)
    try:
        import timm  # imported only if used, because it is optional and the import is slow
    except ModuleNotFoundError as error:
        raise ConfigError('net=timm needs the package timm. Try pip install "clbench[models]".') from error
    architecture, _, _ = name.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(
            f"net.name={name}: expected a model of timm.{suggest(architecture, timm.list_models())} timm.list_models() lists all."
        )
    if pretrained and not timm.is_model_pretrained(architecture):
        raise ConfigError(f"net.pretrained=true: timm has no weights of {name}. Try net.pretrained=false.")
    try:
        model: nn.Module = timm.create_model(name, pretrained, in_chans=channels, num_classes=0, **options)
    except OSError as error:  # the errors of huggingface_hub and of urllib are OSErrors
        raise ConfigError(
            f"net.pretrained=true: the weights of {name} are not in the cache and could not be downloaded. Try "
            "net.pretrained=false, set HF_HOME to a folder that has them, or give a file: "
            "+net.pretrained_cfg_overlay={file:FILE}."
        ) from error
    return model
