"""Local Memory Aware Synapses: each layer as a function of its own, from what goes in and what comes out, no gradients."""

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

from clbench.importance.batching import count, moved, subsample, take
from clbench.importance.engine import budgets
from clbench.importance.example_statistics import ExampleStatistics
from clbench.importance.general import Outputs
from clbench.importance.layers import FORMS, fits, form_of
from clbench.importance.measure import finite
from clbench.importance.outputs import default_outputs
from clbench.importance.preserve_state import preserve_state
from clbench.importance.probe import check_independent
from clbench.params import Params, trainable

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


def mas_local(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = None,
    seed: int = 0,
    outputs: Outputs = default_outputs,
    chunk: int | None = None,
) -> Params:
    """The local (Hebbian) form of ``mas``: 2 * mean over examples of |pre_i * post_j|.

    A linear layer and the ReLU after it are taken as a function of their own, post = relu(W pre + b). Then
    d ||post||^2 / dW_ji = 2 post_j pre_i and d ||post||^2 / db_j = 2 post_j (Aljundi et al. 2018, ECCV, section 4.2), so on a
    net of one such layer this is ``mas``. A convolution shares its weights over positions p, so its value for an example
    is |2 sum_p patch_p post_p|, and so is that of a linear layer applied to several positions.

    - pre is the layer's own input, post its activated output: what the ReLU gives (``nn.ReLU`` or a function), also
      when BatchNorm, GroupNorm, LayerNorm or a maximum pooling comes between the two (post is then normalised, not
      pooled).
    - A layer whose output goes into something else first (the head, the last convolution of a residual branch, another
      activation) is linear: post is its output. Of a head that is cut to the columns that compete, only these count.
    - Parameters of other layers (normalisation, embedding, attention, recurrent, transposed or 3D convolution) have no
      such form and get zeros, as do those that are not used. Only calls of a layer count, not other uses of its weight.

    Args:
        module, batches, samples, seed, outputs, chunk: as in ``mas``; targets may be None.

    Returns:
        By parameter name, as in ``mas``.

    Raises:
        ValueError: as in ``mas``; a layer is called twice or shares a parameter, so it is no function of its own; a
            layer's input does not have the examples first; there is no linear or convolutional layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> mas_local(net, [torch.randn(5, 3)])["0.weight"].shape
        torch.Size([2, 3])
    """
    with preserve_state(module), torch.no_grad():
        local = Local(module, outputs, chunk)
        for batch in subsample(batches, samples, seed):
            local.add(batch)
        return finite(local.statistics.mean())


class Local:
    """Sums the values of one module; used inside ``preserve_state``."""

    def __init__(self, module: nn.Module, outputs: Outputs, chunk: int | None) -> None:
        self.module, self.outputs, self.chunk = module, outputs, chunk
        params = trainable(module)
        names = {id(p): name for name, p in params.items()}
        self.own: dict[nn.Module, dict[str, str]] = {}  # of each layer: local name -> full name
        for layer in module.modules():
            own = {local: names[id(p)] for local, p in layer.named_parameters(recurse=False) if id(p) in names}
            if own and form_of(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d):
                self.own[layer] = own
        if not self.own:
            raise ValueError(
                "no nn.Linear, nn.Conv1d or nn.Conv2d of the module has a trainable parameter, so there is no local form; "
                "use the global one"
            )
        self.device = next(iter(params.values())).device
        self.forward_budget, self.inner_budget = budgets(self.device)
        self.statistics = ExampleStatistics(params, second=False)
        self.each = 0  # bytes that an example takes

    def add(self, batch: Any) -> None:
        """Add the values of every example of ``batch``.

        The very first example comes alone: it shows how many fit the memory, and where dimension 0 is not the examples.
        """
        batch = moved(batch, self.device)
        if not self.each:
            check_independent(self.module, lambda some: self.outputs(self.module, some), batch)
        start, n = 0, count(batch)
        while start < n:
            size = max(1, self.forward_budget // self.each) if self.each else 1
            stop = start + min(size, self.chunk or size)
            self._piece(take(batch, slice(start, stop)))
            start = stop

    def _piece(self, batch: Any) -> None:
        n, held = count(batch), 0
        done: set[str] = set()

        def found(layer: nn.Module, a: Tensor, post: Tensor) -> None:
            nonlocal held
            held += (a.numel() + 2 * post.numel()) * a.element_size()
            self._check(layer, a, n, done)
            done.update(self.own[layer].values())
            self._layer(layer, _wide(a), 2 * _wide(post))

        with activations(self.own, found) as following:
            z, _ = self.outputs(self.module, batch)
        following.end(z)
        self.each = max(1, held // n)
        self.statistics.examples += n

    def _check(self, layer: nn.Module, a: Tensor, n: int, done: set[str]) -> None:
        """Raise ValueError if a parameter of the layer is among those ``done``, or the rows of its input are not examples."""
        own = set(self.own[layer].values())
        if shared := own & done:
            raise ValueError(
                f"{min(shared)!r} is used by two calls of a layer, so that layer is not a function of its own and has no local "
                "form; use the global one"
            )
        if not fits(layer, a, n):
            raise ValueError(
                f"the layer of {min(own)!r} gets an input of shape {tuple(a.shape)} for {n} examples, but dimension 0 must be "
                "the examples (batch_first=True); else use the global form"
            )

    def _layer(self, layer: nn.Module, a: Tensor, g: Tensor) -> None:
        """Add the values |sum_p g_p a_p^T| of a layer, from its inputs a (n, ...) and g = 2 post (n, ...)."""
        own, kind = self.own[layer], form_of(layer)
        if kind is nn.Linear and a.dim() == 2:
            g = g.abs()
            if "weight" in own:
                self.statistics.add_outer(own["weight"], g, a.abs())
            if "bias" in own:
                self.statistics.add(own["bias"], g.unsqueeze(1))
            return
        numel = sum(p.numel() for p in layer.parameters(recurse=False))
        each = a.element_size() * (numel + g[0].numel() + 9 * a[0].numel())  # nine: the patches of a 3x3 kernel
        size = max(1, self.inner_budget // each)
        for some, posts in zip(a.split(size), g.split(size), strict=True):
            for local, value in FORMS[kind](layer, some, posts.unsqueeze(1), set(own)).items():  # type: ignore[index]
                self.statistics.add(own[local], value.abs())


def _wide(t: Tensor) -> Tensor:
    """In float32 or wider."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
