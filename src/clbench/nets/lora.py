"""LoRA (Hu et al. 2022): train an update of low rank next to each chosen linear layer, and freeze everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from clbench.errors import ConfigError
from clbench.nets.calibration import layers
from clbench.nets.freeze import matching


def add_lora(body: nn.Module, rank: int, targets: Sequence[str], alpha: int | None = None) -> nn.Module:
    """Return ``body`` with adapters of peft, which compute ``layer(x) + alpha / rank * x A^T B^T``, and freeze the rest.

    A (rank, I) is random and B (O, rank) is zero, so the features do not change until training does.

    Args:
        body: The body, changed in place.
        rank: Rank of the updates.
        targets: Patterns with ``*``, ``?`` and ``[...]`` for names of linear layers, such as ``*.attn.qkv``.
        alpha: Numerator of the scale of the updates. None for ``rank``, a scale of 1.

    Raises:
        ConfigError: peft is not installed, the body has no linear layer, or a pattern matches none.

    Example:
        >>> body = add_lora(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), rank=1, targets=["0"])
        >>> [name for name, parameter in body.named_parameters() if parameter.requires_grad]
        ['0.lora_A.default.weight', '0.lora_B.default.weight']
    """
    try:
        import peft  # imported only if used, because it is optional and the import is slow
    except ModuleNotFoundError as error:
        raise ConfigError('net.lora needs the package peft. Try pip install "clbench[models]".') from error
    linear = [name for name, layer in layers(body).items() if isinstance(layer, nn.Linear) and name]
    if not linear:
        raise ConfigError(
            "net.lora: expected a body with layers of the class torch.nn.Linear, got none. Try another net, or net.lora=null."
        )
    chosen = [name for pattern in targets for name in matching("net.lora.targets", pattern, linear, "linear layer")]
    exact = "|".join(map(re.escape, chosen))  # peft would also look for the names of a list in other parts
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=exact)
    adapted: nn.Module = peft.inject_adapter_in_model(config, body)
    return adapted
