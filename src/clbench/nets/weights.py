"""Weights of a body from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from clbench.errors import ConfigError

HOLDERS = ("learner", "state_dict")
"""Where a checkpoint keeps the weights: ``task_<t>.ckpt`` of a run, a checkpoint of Lightning."""

PREFIXES = ("net.body.", "body.")
"""What the names of a body's weights begin with in a learner, and in a net."""


def init_from(body: nn.Module, path: str | Path) -> None:
    """Load the weights and statistics of ``body`` from ``path``; whatever heads the file has are left alone.

    Args:
        body: changed in place.
        path: ``checkpoints/task_<t>.ckpt`` of a run, a checkpoint of Lightning, or a saved ``state_dict()`` of a learner,
            of a net, or of a body alone. Read with ``weights_only``, so it can run no code.

    Raises:
        ConfigError: there is no such file, it holds no weights, or they are not exactly those of ``body``.
    """
    path = Path(path).expanduser()
    wanted = body.state_dict()
    found = _weights(path, wanted)
    wrong = (
        [f"the net also has {name}" for name in wanted if name not in found]
        + [f"the file also has {name}" for name in found if name not in wanted]
        + [
            f"{name} is {tuple(found[name].shape)} in the file, {tuple(tensor.shape)} in the net"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ]
    )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"init_from={path} does not fit the body ({'; '.join(wrong[:3])}{more}): choose the net and the shape of input "
            "it was saved from, or save body.state_dict() of this net"
        )
    body.load_state_dict(found)


def _weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the body in the file, by their names in the body."""
    if not path.is_file():
        raise ConfigError(
            f"init_from={path} is not a file: give checkpoints/task_<t>.ckpt of a run, or a saved state_dict"
        )
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(
            f"init_from={path} cannot be read with weights_only ({str(error).splitlines()[0]}): save the net's state_dict(), "
            "not the net"
        ) from error
    for holder in HOLDERS:
        if isinstance(held, Mapping) and isinstance(held.get(holder), Mapping):
            held = held[holder]
    if not (isinstance(held, Mapping) and held and all(isinstance(value, Tensor) for value in held.values())):
        raise ConfigError(f"init_from={path} holds no state_dict (names with tensors): save the net's state_dict()")
    if held.keys() == wanted.keys():  # a body may have a part of its own that is called body
        return dict(held)
    for prefix in PREFIXES:
        part = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
        if part:
            return part
    return dict(held)
