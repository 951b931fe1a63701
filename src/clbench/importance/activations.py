"""What comes out of each layer once the ReLU after it, if there is one, has been applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
NORMALISATION = {F.batch_norm, F.group_norm, F.layer_norm}
POOLING = {F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d}

Found = Callable[[nn.Module, Tensor, Tensor], None]
"""Takes a layer, its input and its activated output, each a tensor of its own."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, with copies of its input and output, which may be changed in place afterwards."""

    layer: nn.Module
    input: Tensor
    output: Tensor


class Followed(NamedTuple):
    """What a tensor is: the output of ``call``, as ``value``, or only its ``columns``; while it has this version."""

    call: Call
    value: Tensor
    version: int
    columns: Any = None


class Activations(TorchFunctionMode):
    """Follows the outputs of layers by identity to a ReLU, through normalisation and maximum pooling.

    As ReLU and maximum pooling may change places, what is handed on is activated but not pooled.
    """

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found
        self.open: dict[Call, None] = {}  # in the order of the calls
        self.followed = WeakTensorKeyDictionary()

    def called(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Forward hook of the layers."""
        call = Call(layer, (args[0] if args else kwargs["input"]).clone(), output.clone())
        self.open[call] = None
        self.followed[output] = Followed(call, call.output, output._version)

    def of(self, t: Any) -> Followed | None:
        """What ``t`` is, if it is followed and has not been changed in place since."""
        known = self.followed.get(t) if isinstance(t, Tensor) else None
        return known if known is not None and known.version == t._version else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = self.of(args[0] if args else kwargs.get("input"))
        out = func(*args, **kwargs)
        if known is None or known.columns is not None or not isinstance(out, Tensor):
            return out
        if func in RELU:
            if known.call in self.open:
                del self.open[known.call]
                self.found(known.call.layer, known.call.input, F.relu(known.value))
        elif func in NORMALISATION:
            self.followed[out] = Followed(known.call, out, out._version)
        elif func in POOLING:
            self.followed[out] = known._replace(version=out._version)
        elif func is Tensor.__getitem__:
            self.followed[out] = known._replace(version=out._version, columns=args[1])
        return out

    def end(self, outputs: Tensor) -> None:
        """Hand on the layers that no ReLU has followed, when the module has returned ``outputs``."""
        last = self.of(outputs)
        for call in self.open:
            post = call.output
            if last is not None and last.call is call and last.columns is not None:
                post = torch.zeros_like(post)
                post[last.columns] = outputs
            self.found(call.layer, call.input, post)


@contextmanager
def activations(layers: Iterable[nn.Module], found: Found) -> Iterator[Activations]:
    """Calls ``found`` for each call of one of ``layers`` that a ReLU follows; the others come with ``end``.

    A layer that goes into something else first, or is changed in place, has no ReLU: it is handed on with its own
    output; of the last one, cut to the module's outputs by an index, with zeros in the other places.
    """
    mode = Activations(found)
    handles = [layer.register_forward_hook(mode.called, prepend=True, with_kwargs=True) for layer in layers]
    try:
        with mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()
