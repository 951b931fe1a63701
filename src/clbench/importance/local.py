"""Local Memory Aware Synapses: each layer is a function of its own, so inputs and outputs suffice and no gradient is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from clbench.importance.batching import count, move_to, subsample, take
from clbench.importance.engine import budgets
from clbench.importance.example_statistics import ExampleStatistics
from clbench.importance.factors import Dense, Factor, Outer
from clbench.importance.measure import check_finite
from clbench.importance.outputs import Outputs, default_outputs, forward
from clbench.importance.patches import patches_by_group
from clbench.importance.preserve_state import preserve_state
from clbench.importance.probe import check_independent
from clbench.params import Params, trainable, widen

RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
NORMALISATION = {F.batch_norm, F.group_norm, F.layer_norm}
POOLING = {F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d}

OnActivated = Callable[[nn.Module, Tensor, Tensor], None]
"""Called with a layer, its input and its activated output, in separate memory."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, with copies of its input and output because both may be changed in place afterwards."""

    layer: nn.Module
    input: Tensor
    output: Tensor


class Tracked(NamedTuple):
    """The origin of a tensor.

    Attributes:
        call: The layer call it comes from.
        value: Its value before pooling.
        version: Version counter of the tensor when it was tracked.
        columns: Index by which the tensor was cut from ``value``, None if it was not.
    """

    call: Call
    value: Tensor
    version: int
    columns: Any = None


class Activations(TorchFunctionMode):
    """Tracks the outputs of layers to a ReLU, through normalisation and maximum pooling.

    ReLU and maximum pooling commute. The activated output that is passed to ``on_activated`` is therefore never pooled.
    """

    def __init__(self, on_activated: OnActivated) -> None:
        super().__init__()
        self.on_activated = on_activated
        self.pending: dict[Call, None] = {}  # an ordered set, in the order of the calls
        self.tracked = WeakTensorKeyDictionary()

    def forward_hook(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Forward hook of the layers."""
        call = Call(layer, (args[0] if args else kwargs["input"]).clone(), output.clone())
        self.pending[call] = None
        self.tracked[output] = Tracked(call, call.output, output._version)

    def origin(self, t: Any) -> Tracked | None:
        """Return the origin of ``t``, or None if it is not tracked or was changed in place since."""
        known = self.tracked.get(t) if isinstance(t, Tensor) else None
        return known if known is not None and known.version == t._version else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = self.origin(args[0] if args else kwargs.get("input"))
        out = func(*args, **kwargs)
        if known is None or known.columns is not None or not isinstance(out, Tensor):
            return out
        if func in RELU:
            if known.call in self.pending:
                del self.pending[known.call]
                self.on_activated(known.call.layer, known.call.input, F.relu(known.value))
        elif func in NORMALISATION:
            self.tracked[out] = Tracked(known.call, out, out._version)
        elif func in POOLING:
            self.tracked[out] = known._replace(version=out._version)
        elif func is Tensor.__getitem__:
            self.tracked[out] = known._replace(version=out._version, columns=args[1])
        return out

    def finish(self, outputs: Tensor) -> None:
        """Report the layers that no ReLU has followed. Call it when the module has returned ``outputs``."""
        last = self.origin(outputs)
        for call in self.pending:
            post = call.output
            if last is not None and last.call is call and last.columns is not None:
                post = torch.zeros_like(post)
                post[last.columns] = outputs
            self.on_activated(call.layer, call.input, post)


@contextmanager
def activations(layers: Iterable[nn.Module], on_activated: OnActivated) -> Iterator[Activations]:
    """Track the calls of ``layers``: report each one that a ReLU follows, and the others in ``finish``.

    A layer whose output enters another operation first, or is changed in place, counts as a layer without a ReLU and is reported
    with its own output. If an index cuts the last output to the outputs of the module, the other places are zero.
    """
    mode = Activations(on_activated)
    handles = [layer.register_forward_hook(mode.forward_hook, prepend=True, with_kwargs=True) for layer in layers]
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
    """Return the local (Hebbian) form of ``mas``: 2 * mean over examples of |pre_i * post_j|.

    A linear layer and the ReLU after it are taken as a function post = relu(W pre + b). Then d ||post||^2 / dW_ji =
    2 post_j pre_i and d ||post||^2 / db_j = 2 post_j (Aljundi et al. 2018, ECCV, section 4.2), which equals ``mas`` on a net of
    one such layer. A convolution shares its weights over positions p, so the value of an example is |2 sum_p patch_p post_p|.
    The same holds for a linear layer that is applied to several positions.

    - pre is the input of the layer. post is its activated output: the output of the ReLU (``nn.ReLU`` or a function), also if
      BatchNorm, GroupNorm, LayerNorm or maximum pooling comes in between. post is then normalised, but not pooled.
    - A layer whose output enters another operation first (the head, the last convolution of a residual branch, another
      activation) counts as linear, so post is its output. If a head is cut to the columns that compete, only these count.
    - Parameters of other layers (normalisation, embedding, attention, recurrent, transposed or 3D convolution) have no local
      form and get zeros, as do unused parameters. Only calls of a layer count, not other uses of its weight.

    Args:
        module, batches, samples, seed, outputs, chunk: See ``mas``.

    Returns:
        The importance by parameter name, see ``mas``.

    Raises:
        ValueError: See ``mas``. Also if a layer is called twice or shares a parameter, if the first dimension of a layer's input
            is not the examples, or if there is no linear or convolutional layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
        >>> _ = nn.init.ones_(net[0].weight)
        >>> mas_local(net, [torch.tensor([[1.0, 2.0]])])  # post = 3
        {'0.weight': tensor([[ 6., 12.]])}
    """
    with preserve_state(module), torch.no_grad():
        local = Local(module, outputs, chunk)
        for batch in subsample(batches, samples, seed):
            local.add(batch)
        return check_finite(local.statistics.mean())


class Local:
    """Sums the values of one module. Must be used inside ``preserve_state``."""

    def __init__(self, module: nn.Module, outputs: Outputs, chunk: int | None) -> None:
        self.module, self.outputs, self.chunk = module, outputs, chunk
        params = trainable(module)
        full_name = {id(p): name for name, p in params.items()}
        self.names: dict[nn.Module, dict[str, str]] = {}  # layer -> local name -> full name
        for layer in module.modules():
            names = {
                local: full_name[id(p)] for local, p in layer.named_parameters(recurse=False) if id(p) in full_name
            }
            if names and type_of(layer) is not None:
                self.names[layer] = names
        if not self.names:
            raise ValueError(
                "no nn.Linear, nn.Conv1d or nn.Conv2d of the module has a trainable parameter, so there is no local form. "
                "Use mas instead (form=global)"
            )
        self.device = next(iter(params.values())).device
        self.forward_budget, self.inner_budget = budgets(self.device)
        self.statistics = ExampleStatistics(params, second=False)
        self.each = 0  # bytes of an example

    def add(self, batch: Any) -> None:
        """Add the values of every example of ``batch``.

        The first example is measured alone. It shows how many examples fit in memory, and whether dimension 0 is the examples.
        """
        batch = move_to(batch, self.device)
        if not self.each:
            check_independent(self.module, self.outputs, batch)
        start, n = 0, count(batch)
        while start < n:
            size = max(1, self.forward_budget // self.each) if self.each else 1
            stop = start + min(size, self.chunk or size)
            self._piece(take(batch, slice(start, stop)))
            start = stop

    def _piece(self, batch: Any) -> None:
        n, used = count(batch), 0
        done: set[str] = set()

        def on_activated(layer: nn.Module, a: Tensor, post: Tensor) -> None:
            nonlocal used
            used += (a.numel() + 2 * post.numel()) * a.element_size()
            self._check(layer, a, n, done)
            done.update(self.names[layer].values())
            self._layer(layer, widen(a), 2 * widen(post))

        with activations(self.names, on_activated) as tracker:
            result = forward(self.outputs, self.module, batch)
        if result.mask is not None:
            raise ValueError("a mask of the outputs has no local form. Use mas instead (form=global)")
        tracker.finish(result.z)
        self.each = max(1, used // n)
        self.statistics.count(n, n)

    def _check(self, layer: nn.Module, a: Tensor, n: int, done: set[str]) -> None:
        """Raise ValueError if a parameter of the layer is in ``done``, or the rows of its input are not the examples."""
        names = set(self.names[layer].values())
        if shared := names & done:
            raise ValueError(
                f"{min(shared)!r} is used by two calls of a layer, so it has no local form. Use mas instead (form=global)"
            )
        if not fits(layer, a, n):
            raise ValueError(
                f"the layer of {min(names)!r} gets an input of shape {tuple(a.shape)} for {n} examples, but dimension 0 must be "
                "the examples. Use batch_first=True, or mas instead (form=global)"
            )

    def _layer(self, layer: nn.Module, a: Tensor, g: Tensor) -> None:
        """Add the values |sum_p g_p a_p^T| of a layer with inputs a (n, ...) and g = 2 post (n, ...)."""
        factors = FACTORS[type_of(layer)](layer, a, g)  # type: ignore[index]
        for local, name in self.names[layer].items():
            factors[local].add_to(self.statistics.of(name), torch.abs, self.inner_budget)


def linear(layer: nn.Linear, a: Tensor, g: Tensor) -> dict[str, Factor]:
    """Return the factors of a linear layer for inputs a (n, ..., I) and g (n, ..., O)."""
    rows = g.reshape(len(g), 1, 1, -1, g.shape[-1])
    inputs = a.reshape(len(a), 1, -1, a.shape[-1])
    return {"weight": Outer(rows, inputs, layer.weight.shape), "bias": Dense(rows.sum((2, 3)))}


def convolution(layer: nn.Conv1d | nn.Conv2d, a: Tensor, g: Tensor) -> dict[str, Factor]:
    """Return the factors of a convolution for inputs a (n, I, *in) and g (n, O, *out)."""
    pad = layer._reversed_padding_repeated_twice  # also set for padding='same'; last dimension first
    if any(pad):
        a = F.pad(a, pad, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    rows = g.reshape(len(g), 1, layer.groups, g.shape[1] // layer.groups, -1).mT
    unfold = partial(
        patches_by_group,
        groups=layer.groups,
        kernel=layer.kernel_size,
        stride=layer.stride,
        padding=(0, 0),
        dilation=layer.dilation,
    )
    weight = Outer(rows, a.unsqueeze(1), layer.weight.shape, unfold=unfold)
    return {"weight": weight, "bias": Dense(g.flatten(2).sum(2).unsqueeze(1))}


FACTORS: dict[type[nn.Module], Callable[..., dict[str, Factor]]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
}
"""The layers with a local form."""


def type_of(layer: nn.Module) -> type[nn.Module] | None:
    """Return the layer type whose local form applies, or None. A subclass that keeps the forward pass counts too."""
    for kind in FACTORS:
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return kind
    return None


def fits(layer: nn.Module, a: Tensor, n: int) -> bool:
    """Return whether the input has the layout that the local form expects: ``n`` examples first, and all dimensions."""
    if a.dim() == 0 or a.shape[0] != n:
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return a.dim() == len(layer.kernel_size) + 2 and type(layer)._conv_forward is type_of(layer)._conv_forward  # type: ignore[union-attr]
    return a.dim() >= 2
