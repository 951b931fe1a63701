"""Per-example gradients of any module: torch.func where it can trace the module, else one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from clbench.importance.batching import take
from clbench.params import Params, named_parameters

Outputs = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]
"""Maps module and batch to outputs (N, C) and targets (N,) or None."""


class Measured(nn.Module):
    """``outputs`` as a module, so that a functional call can exchange the parameters under it.

    A parameter may lie in several places (tied weights), and a layer may have several names; each place is exchanged once.
    """

    def __init__(self, module: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.module = module
        self.outputs = outputs
        names = {id(p): name for name, p in named_parameters(module).items()}
        self.places: dict[str, list[str]] = {name: [] for name in names.values()}
        for prefix, part in module.named_modules(prefix="module"):  # each once, however many names it has
            for local, p in part.named_parameters(recurse=False, remove_duplicate=False):
                self.places[names[id(p)]].append(f"{prefix}.{local}")

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Outputs (N, C) and targets."""
        return self.outputs(self.module, batch)

    def with_params(self, params: Params, batch: Any) -> tuple[Tensor, Tensor | None]:
        """The same with ``params`` in place of the module's own."""
        replaced = {place: p for name, p in params.items() for place in self.places[name]}
        result: tuple[Tensor, Tensor | None] = functional_call(self, replaced, (batch,), tie_weights=False)
        return result


def by_vmap(measured: Measured, params: Params, batch: Any, output_gradients: Tensor) -> Params:
    """Gradients (n, K, *shape) of ``output_gradients[n, k] . outputs[n]`` with respect to params, traced once."""
    leaves, spec = tree_flatten(batch)
    dims = [0 if isinstance(leaf, Tensor) and leaf.dim() > 0 else None for leaf in leaves]
    mapped = [leaf for leaf, dim in zip(leaves, dims, strict=True) if dim == 0]

    def one(seed: Tensor, *row: Tensor) -> Params:
        rest = iter(row)
        full = [next(rest).unsqueeze(0) if d == 0 else leaf for leaf, d in zip(leaves, dims, strict=True)]
        example = tree_unflatten(full, spec)
        _, pull, *_ = vjp(lambda p: measured.with_params(p, example)[0][0], params)
        if len(seed) == 1:
            return {name: g.unsqueeze(0) for name, g in pull(seed[0])[0].items()}
        grads: Params = vmap(lambda v: pull(v)[0])(seed)
        return grads

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        out: Params = vmap(one)(output_gradients, *mapped)
    return out


def by_loop(measured: Measured, params: Params, batch: Any, output_gradients: Tensor) -> Params:
    """The same, one example at a time; for modules that torch.func cannot trace."""
    per_example = []
    for i in range(len(output_gradients)):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        z = measured.with_params(leaves, take(batch, slice(i, i + 1)))[0][0]
        grads = [
            torch.autograd.grad(z, list(leaves.values()), v, retain_graph=True, allow_unused=True)
            for v in output_gradients[i]
        ]
        per_example.append(
            [
                torch.stack([torch.zeros_like(p) if g is None else g for g in column])
                for column, p in zip(zip(*grads, strict=True), params.values(), strict=True)
            ]
        )
    return {name: torch.stack(column) for name, column in zip(params, zip(*per_example, strict=True), strict=True)}


class General:
    """Chooses between the two for one module, once, and cuts the examples into pieces that fit the memory."""

    def __init__(self, measured: Measured, budget: int) -> None:
        self.measured = measured
        self.budget = budget
        self.traceable = True

    def __call__(self, params: Params, batch: Any, output_gradients: Tensor, footprint: int) -> Iterator[Params]:
        """Gradients (m, K, *shape) of successive pieces of m examples.

        Args:
            params: the parameters to differentiate by.
            batch: n examples.
            output_gradients: (n, K, C).
            footprint: bytes that the forward pass of one example keeps.
        """
        k = output_gradients.shape[1]
        each = 2 * (k + 1) * sum(p.numel() * max(4, p.element_size()) for p in params.values()) + (k + 1) * footprint
        size = max(1, self.budget // each)
        for start in range(0, len(output_gradients), size):
            piece = slice(start, start + size)
            yield self._gradients(params, take(batch, piece), output_gradients[piece])

    def _gradients(self, params: Params, batch: Any, output_gradients: Tensor) -> Params:
        if self.traceable:
            try:
                return by_vmap(self.measured, {n: p.detach() for n, p in params.items()}, batch, output_gradients)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # torch.func raises many types for what it cannot trace; a true error comes again below
                self.traceable = False
        return by_loop(self.measured, params, batch, output_gradients)
