"""Models of the package transformers as bodies. Needs the extra ``models``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config.known_names import suggest
from clbench.errors import ConfigError

EXAMPLE = "net.config={model_type: gpt2, n_layer: 2}"
UNUSED = ("bos_token_id", "eos_token_id")
"""Tokens that only generation uses. Without them, a small vocabulary is accepted silently."""


def hf_model(shape: Sequence[int], name: str | None = None, config: Mapping[str, Any] | None = None) -> HFBody:
    """Return a model of transformers without its head: a body for tokens or for images.

    The features of tokens (N, T) are those of the last layer, (N, T, F). The features of images (N, C, H, W) are pooled, (N, F).
    The attention takes no token for padding. But some configurations, such as that of BERT, have a ``pad_token_id``, whose
    embedding is not trained. Set it to null if the tokens are bytes.

    Args:
        shape: Shape of one input: (T,) for tokens, (C, H, W) for images.
        name: Folder of a saved model, or a name in the cache or on the Hugging Face Hub. Its weights are loaded in float32, and
            downloaded if they are missing.
        config: Configuration of a model with random weights: ``model_type`` and its options. Image models get ``image_size`` and
            ``num_channels`` from ``shape``.

    Raises:
        ConfigError: transformers is not installed, not exactly one of ``name`` and ``config`` is given, an option is unknown, the
            model cannot be loaded or constructed, or it does not take inputs of ``shape``.

    Example:
        >>> sizes = {"vocab_size": 256, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
        >>> body = hf_model((16,), config={"model_type": "bert", "num_hidden_layers": 1, **sizes})
        >>> body(torch.zeros(3, 16, dtype=torch.uint8)).shape
        torch.Size([3, 16, 8])
    """
    if (name is None) == (config is None):
        raise ConfigError(f"net.name={name}, net.config={config}: expected one of them. Try {EXAMPLE}.")
    try:
        import transformers  # noqa: F401 - imported only if used, because it is optional and the import is slow
    except ModuleNotFoundError as error:
        raise ConfigError('net=hf needs the package transformers. Try pip install "clbench[models]".') from error
    model = _configured(dict(config or {}), shape) if name is None else _saved(name)
    takes = {"input_ids": 1, "pixel_values": 3}.get(model.main_input_name)
    if takes != len(shape) or model.config.is_encoder_decoder:
        kind = f"{'encoder-decoder ' if model.config.is_encoder_decoder else ''}{type(model).__name__}"
        raise ConfigError(
            f"net=hf: expected an encoder or a decoder for tokens (T,), or an image model for (C, H, W), got the {kind} of "
            f"{model.main_input_name} for inputs {tuple(shape)}. Use another model or other data."
        )
    return HFBody(model)


class HFBody(nn.Module):
    """Computes the features of ``model``, a PreTrainedModel for tokens or for images.

    The pooling layer of a token model is removed, because its output is not used. The cache of a decoder is switched off, because
    it would only take memory.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.is_text = model.main_input_name == "input_ids"
        model.config.use_cache = False
        if self.is_text and getattr(model, "pooler", None) is not None:
            model.pooler = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (N, T, F) of integer tokens (N, T), or (N, F) of images (N, C, H, W).

        Raises:
            ValueError: The tokens are not integers, or the image model has no pooled features.
        """
        if not self.is_text:
            pooled = getattr(self.model(pixel_values=x), "pooler_output", None)
            if pooled is None:
                raise ValueError(f"net=hf: {type(self.model).__name__} has no pooled features. Try net=timm")
            return pooled.flatten(1)  # type: ignore[no-any-return]  # convolutional models return (N, F, 1, 1)
        if x.is_floating_point():
            raise ValueError(f"net=hf: expected integer tokens (N, T), got {x.dtype} {tuple(x.shape)}")
        # without a mask, some models look for padding in the values of the tokens
        output = self.model(input_ids=x.long(), attention_mask=torch.ones_like(x, dtype=torch.long))
        return output.last_hidden_state  # type: ignore[no-any-return]


def _configured(options: dict[str, Any], shape: Sequence[int]) -> Any:
    """Return a model with random weights."""
    from transformers import CONFIG_MAPPING, AutoModel

    kind = options.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"net.config.model_type={kind}: expected an architecture of transformers.{suggest(str(kind), [*CONFIG_MAPPING])} "
            f"Try {EXAMPLE}."
        )
    make = CONFIG_MAPPING[kind]
    known = {*make().to_dict(), *make.attribute_map}
    for option in options:
        if option not in known:  # transformers would accept it and ignore it
            raise ConfigError(f"net.config.{option}: expected an option of {kind}.{suggest(option, [*known])}")
    defaults: dict[str, Any] = dict.fromkeys(UNUSED)
    if len(shape) == 3:
        defaults |= {"num_channels": shape[0], "image_size": shape[1] if shape[1] == shape[2] else list(shape[1:])}
    factory: Any = AutoModel  # its methods have no types
    try:
        made = make(**{k: v for k, v in defaults.items() if k in known} | options)
        return factory.from_config(made, trust_remote_code=False)
    except Exception as error:  # every configuration checks its options in its own way
        raise ConfigError(f"net.config={options}: transformers could not construct {kind} ({_line(error)}).") from error


def _saved(name: str) -> Any:
    """Return a model with the weights of a folder, of the cache or of the Hub, in training mode."""
    from transformers import AutoModel

    try:
        path = Path(name).expanduser().as_posix()
        return AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).train()
    except (OSError, ValueError) as error:  # the errors of huggingface_hub are OSErrors
        raise ConfigError(
            f"net.name={name}: transformers could not load the model ({_line(error)}). Give the folder of a saved model, set "
            f"HF_HOME to a cache that has it, connect to the network, or use random weights: {EXAMPLE}."
        ) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 200 else f"{text[:200]}...").rstrip(".")
