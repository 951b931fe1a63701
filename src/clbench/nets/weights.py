"""Load the weights of a body from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.nets.torch_file import read_file

KEYS = ("learner", "state_dict")
"""Keys of the weights in a checkpoint: in ``task_<t>.ckpt`` of a run, in a checkpoint of Lightning."""

PREFIXES = ("net.body.", "body.")
"""Prefixes of the names of a body's weights in a learner, and in a net."""


def init_from(body: nn.Module, path: str | Path) -> None:
    """Load the weights and statistics of ``body`` from ``path``. Heads in the file are ignored.

    Args:
        body: The body, changed in place.
        path: ``checkpoints/task_<t>.ckpt`` of a run, a checkpoint of Lightning, or a saved ``state_dict()`` of a learner, a net
            or a body. It is read with ``weights_only``, so it cannot run code.

    Raises:
        ConfigError: There is no such file, it contains no weights, or the weights do not fit ``body`` exactly.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(nn.Linear(3, 2).state_dict(), f"{folder}/body.pt")
        ...     init_from(nn.Linear(3, 2), f"{folder}/body.pt")
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
            f"init_from={path}: expected the weights of this body ({', '.join(wrong[:3])}{more}). Use the net and the input "
            "shape with which it was saved, or save body.state_dict() of this net"
        )
    body.load_state_dict(found)


def _weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the body in the file, by their names in the body."""
    if not path.exists():
        raise ConfigError(
            f"init_from={path}: expected a file. Try checkpoints/task_<t>.ckpt of a run, or a saved state_dict"
        )
    found: Any = read_file(path, "Save the net's state_dict(), not the net, or try another file.", "init_from")
    for key in KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not (isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ConfigError(f"init_from={path}: expected a state_dict (tensors by name). Save the net's state_dict()")
    if found.keys() == wanted.keys():  # a body may itself have a part named body
        return dict(found)
    for prefix in PREFIXES:
        part = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
        if part:
            return part
    return dict(found)
