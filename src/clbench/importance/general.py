"""Per-example gradients of any module, by torch.func if it can trace the module, else by a loop over examples."""

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
"""Function of (module, batch) that returns outputs (N, C) and targets (N,) or None."""


class Measured(nn.Module):
    """``outputs`` as a module, so that ``functional_call`` can replace its parameters.

    A parameter may be in several places (tied weights) and a layer may have several names. Each place is replaced once.
    """

    def __init__(self, module: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.module = module
        self.outputs = outputs
        names = {id(p): name for name, p in named_parameters(module).items()}
        self.places: dict[str, list[str]] = {name: [] for name in names.values()}
        for prefix, part in module.named_modules(prefix="module"):  # yields a layer once, even if it has several names
            for local, p in part.named_parameters(recurse=False, remove_duplicate=False):
                self.places[names[id(p)]].append(f"{prefix}.{local}")

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Return outputs (N, C) and targets."""
        return self.outputs(self.module, batch)

    def with_params(self, params: Params, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Return outputs and targets with ``params`` in place of the module's parameters."""
        replaced = {place: p for name, p in params.items() for place in self.places[name]}
        result: tuple[Tensor, Tensor | None] = functional_call(self, replaced, (batch,), tie_weights=False)
        return result


def vmap_gradients(measured: Measured, params: Params, batch: Any, output_gradients: Tensor) -> Params:
    """Return the gradients (n, K, *shape) of ``output_gradients[n, k] . outputs[n]`` with respect to ``params``."""
    leaves, spec = tree_flatten(batch)
    dims = [0 if isinstance(leaf, Tensor) and leaf.dim() > 0 else None for leaf in leaves]
    mapped = [leaf for leaf, dim in zip(leaves, dims, strict=True) if dim == 0]

    def example_gradients(vectors: Tensor, *row: Tensor) -> Params:
        rest = iter(row)
        full = [next(rest).unsqueeze(0) if d == 0 else leaf for leaf, d in zip(leaves, dims, strict=True)]
        example = tree_unflatten(full, spec)
        _, pull, *_ = vjp(lambda p: measured.with_params(p, example)[0][0], params)
        if len(vectors) == 1:
            return {name: g.unsqueeze(0) for name, g in pull(vectors[0])[0].items()}
        grads: Params = vmap(lambda v: pull(v)[0])(vectors)
        return grads

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        out: Params = vmap(example_gradients)(output_gradients, *mapped)
    return out


def loop_gradients(measured: Measured, params: Params, batch: Any, output_gradients: Tensor) -> Params:
    """Return the same as ``vmap_gradients``, one example at a time, for modules that torch.func cannot trace."""
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
    """Per-example gradients of one module, in pieces that fit ``budget`` bytes.

    It tries ``vmap_gradients`` first and uses ``loop_gradients`` for the rest of its life once tracing has failed.
    """

    def __init__(self, measured: Measured, budget: int) -> None:
        self.measured = measured
        self.budget = budget
        self.is_traceable = True

    def __call__(self, params: Params, batch: Any, output_gradients: Tensor, footprint: int) -> Iterator[Params]:
        """Yield the gradients (m, K, *shape) of successive pieces of m examples.

        Args:
            params: Parameters to differentiate with respect to.
            batch: Batch of n examples.
            output_gradients: Gradients at the outputs, (n, K, C).
            footprint: Bytes that the forward pass of one example keeps.
        """
        k = output_gradients.shape[1]
        each = 2 * (k + 1) * sum(p.numel() * max(4, p.element_size()) for p in params.values()) + (k + 1) * footprint
        size = max(1, self.budget // each)
        for start in range(0, len(output_gradients), size):
            piece = slice(start, start + size)
            yield self._gradients(params, take(batch, piece), output_gradients[piece])

    def _gradients(self, params: Params, batch: Any, output_gradients: Tensor) -> Params:
        if self.is_traceable:
            try:
                return vmap_gradients(
                    self.measured, {n: p.detach() for n, p in params.items()}, batch, output_gradients
                )
            except torch.OutOfMemoryError:
                raise
            except (
                Exception
            ):  # torch.func raises many types of errors; an error of the module itself is raised again by the loop
                self.is_traceable = False
        return loop_gradients(self.measured, params, batch, output_gradients)
