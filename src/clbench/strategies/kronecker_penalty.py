"""KroneckerPenalty: a quadratic penalty with Kronecker factors for layers, and its sums over tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clbench.importance.matrix_layers import MatrixLayer
from clbench.params import Params, size_in_bytes
from clbench.strategies.quadratic import Quadratic, quadratic

ITERATIONS = 30
"""Power iterations for the largest curvature."""


class Product(NamedTuple):
    """The matrix A kron G / tasks of one layer.

    Attributes:
        inputs: A, symmetric and positive semi-definite, (I + 1, I + 1) or (I, I).
        gradients: G, symmetric and positive semi-definite, (O, O).
        tasks: The number of tasks over which both are sums, with ``sum_factors``.
    """

    inputs: Tensor
    gradients: Tensor
    tasks: int = 1

    def to(self, device: torch.device) -> Product:
        """Return the product on ``device``."""
        return Product(self.inputs.to(device), self.gradients.to(device), self.tasks)

    def times(self, d: Tensor) -> Tensor:
        """Return G d A / tasks for a matrix d (O, I + 1), the product with vec(d)."""
        inputs, gradients, tasks = self.to(d.device)
        return gradients @ d @ inputs / tasks


Combine = Callable[[Product, Product], Product]


def sum_factors(p: Product, q: Product) -> Product:
    """Return (A1 + A2) kron (G1 + G2), divided by the number of tasks.

    The product of the sums has T^2 terms for T tasks, and the T terms of one task alone are wanted. With the division by T it is
    exact if the tasks have equal factors. It is T times the KFAC of the examples of all tasks together.
    """
    return Product(p.inputs + q.inputs, p.gradients + q.gradients, p.tasks + q.tasks)


def nearest(p: Product, q: Product) -> Product:
    """Return the Kronecker product A kron G that is nearest to A1 kron G1 + A2 kron G2 in the Frobenius norm.

    The rearranged sum is vec(A1) vec(G1)^T + vec(A2) vec(G2)^T, of which the best approximation of rank 1 is wanted (Van Loan and
    Pitsianis 1993). Its left singular vector is x1 vec(A1) + x2 vec(A2), where x is an eigenvector of K_G K_A for the largest
    eigenvalue, with the inner products (K_A)_ij = tr(A_i A_j) and (K_G)_ij = tr(G_i G_j). The inner product of two positive
    semi-definite matrices is >= 0, so x >= 0 by the theorem of Perron and Frobenius, and A = x1 A1 + x2 A2 and
    G = y1 G1 + y2 G2 with y = K_A x / (x^T K_A x) are positive semi-definite too. x is scaled to a sum of 1.

    Over more than two tasks each step is the best one, which need not give the best product for all tasks.
    """
    k_a, k_g = _inner(p.inputs, q.inputs), _inner(p.gradients, q.gradients)
    (a, b), (c, d) = (k_g @ k_a).tolist()
    # the columns of K - (smaller eigenvalue) belong to the larger one; no difference cancels in the chosen column
    half = (a - d) / 2
    root = (half**2 + b * c) ** 0.5
    x = torch.tensor([half + root, c] if half > 0 else [b, root - half], dtype=k_a.dtype)
    x = x / x.sum() if x.sum() > 0 else torch.tensor([0.0, 1.0], dtype=k_a.dtype)
    norm = x @ k_a @ x
    y = k_a @ x / norm if norm > 0 else torch.zeros_like(x)
    return Product(_weighted(x, p.inputs, q.inputs), _weighted(y, p.gradients, q.gradients))


def _inner(s: Tensor, t: Tensor) -> Tensor:
    """Return the inner products of two matrices, (2, 2) in float64 on the CPU."""
    products = [torch.sum(u * v, dtype=torch.float64) for u, v in ((s, s), (s, t), (s, t), (t, t))]
    return torch.stack(products).cpu().view(2, 2).clamp(min=0)


def _weighted(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return x[0].item() * s + x[1].item() * t


ACCUMULATE: dict[str, Combine | None] = {"per_task": None, "sum_factors": sum_factors, "nearest": nearest}


class KroneckerPenalty(NamedTuple):
    """q(theta) = sum_i f_i (theta_i - a_i)^2 + sum over layers and products of tr(D^T G D A) / tasks.

    D = [W b] - its anchor is the matrix of a layer (O, I + 1), see ``MatrixLayer``. The penalty is ``lam / 2 * q(theta)``.

    Attributes:
        diagonal: f by the names of the parameters that have a diagonal importance.
        anchor: a by the names of all penalised parameters.
        products: The products of each layer: one per task, or a single one.
    """

    diagonal: Params
    anchor: Params
    products: dict[MatrixLayer, tuple[Product, ...]]

    @property
    def importance(self) -> Params:
        """The diagonal of the matrix of q, computed when it is read."""
        found = dict(self.diagonal)
        for layer, products in self.products.items():
            each = [torch.outer(p.gradients.diag(), p.inputs.diag()) / p.tasks for p in products]
            for name, f in self._split(layer, sum(each[1:], each[0])).items():
                found[name] = found[name] + f if name in found else f
        return found

    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return q(theta), a scalar. Parameters of a layer that are not in ``params`` are taken at their anchor."""
        total = self._diagonal().value(params)
        for layer, products in self.products.items():
            if any(name in params for name in layer.names):
                d = self._displacement(layer, params)
                total = total + sum((d * p.times(d)).sum() for p in products)
        return total

    def half_gradient(self, params: Mapping[str, Tensor]) -> Params:
        """Return the gradient of q / 2 at theta: f (theta - a), and G D A / tasks summed over the products of a layer."""
        found = self._diagonal().half_gradient(params)
        for layer, products in self.products.items():
            if any(name in params for name in layer.names):
                with torch.no_grad():
                    d = self._displacement(layer, params)
                    half = sum((p.times(d) for p in products[1:]), products[0].times(d))
                for name, g in self._split(layer, half).items():
                    if name in params:
                        found[name] = found[name] + g if name in found else g
        return found

    def curvature(self) -> float:
        """Return the largest eigenvalue, or slightly less: that of a layer is found by power iteration from a random start."""
        largest = self._diagonal().curvature()
        for products in self.products.values():
            generator = torch.Generator().manual_seed(0)
            g, a = products[0].gradients, products[0].inputs
            d = torch.randn(len(g), len(a), generator=generator, dtype=torch.float64).to(g)
            for _ in range(ITERATIONS):
                d = d / d.norm().clamp(min=torch.finfo(d.dtype).tiny)
                d = sum((p.times(d) for p in products[1:]), products[0].times(d))
            largest = max(largest, d.norm().item())
        return largest

    def merge(self, newer: KroneckerPenalty, combine: Combine | None) -> KroneckerPenalty:
        """Return the sum of both at the anchor of ``newer``. ``combine`` makes one product of two; None keeps both."""
        diagonal, products = dict(self.diagonal), dict(self.products)
        for name, f in newer.diagonal.items():
            diagonal[name] = diagonal[name] + f if name in diagonal else f
        for layer, new in newer.products.items():
            both = (*products.get(layer, ()), *new)
            products[layer] = both if combine is None else (reduce(combine, both),)
        return KroneckerPenalty(diagonal, self.anchor | newer.anchor, products)

    def restricted(self, names: Collection[str]) -> KroneckerPenalty:
        """Return q as a function of these parameters, with the others at their anchor.

        A layer of which only the weight or the bias is left keeps that block of A, and the whole G.
        """
        products: dict[MatrixLayer, tuple[Product, ...]] = {}
        for layer, each in self.products.items():
            left = layer._replace(
                weight=layer.weight if layer.weight in names else None, bias=layer.bias if layer.bias in names else None
            )
            if left.names:
                rows = slice(-1 if left.weight is None else None, -1 if left.bias != layer.bias else None)
                blocks = [p._replace(inputs=p.inputs[rows, rows].clone()) if left != layer else p for p in each]
                products[left] = (*products.get(left, ()), *blocks)
        diagonal, anchor = ({n: t for n, t in part.items() if n in names} for part in (self.diagonal, self.anchor))
        return KroneckerPenalty(diagonal, anchor, products)

    def at(self, anchor: Params) -> KroneckerPenalty:
        """Return q with another anchor for the same parameters, on the devices of the anchor."""
        diagonal = {name: f.to(anchor[name].device) for name, f in self.diagonal.items()}
        products = {
            layer: tuple(p.to(anchor[layer.names[0]].device) for p in each) for layer, each in self.products.items()
        }
        return KroneckerPenalty(diagonal, anchor, products)

    def size_in_bytes(self) -> int:
        """Return the memory of the tensors in bytes."""
        factors = {
            f"{i} {j} {k}": t
            for i, each in enumerate(self.products.values())
            for j, p in enumerate(each)
            for k, t in enumerate(p[:2])
        }
        return sum(map(size_in_bytes, (self.diagonal, self.anchor, factors)))

    def state(self) -> dict[str, Any]:
        """Return q as tensors and plain values, for a checkpoint."""
        layers = [[*layer, [list(p) for p in each]] for layer, each in self.products.items()]
        return {"diagonal": self.diagonal, "anchor": self.anchor, "layers": layers}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> KroneckerPenalty:
        """Return the penalty with this ``state``."""
        products = {MatrixLayer(*layer): tuple(Product(*p) for p in each) for *layer, each in state["layers"]}
        return cls(state["diagonal"], state["anchor"], products)

    def _diagonal(self) -> Quadratic:
        return quadratic(self.diagonal, self.anchor)

    def _displacement(self, layer: MatrixLayer, params: Mapping[str, Tensor]) -> Tensor:
        """Return D."""
        parts = []
        for name in layer.names:
            anchor = self.anchor[name]
            d = params[name] - anchor.to(params[name].device) if name in params else torch.zeros_like(anchor)
            is_weight = name == layer.weight
            parts.append((d.T if layer.is_transposed else d.flatten(1)) if is_weight else d.reshape(-1, 1))
        return torch.cat(parts, 1)

    def _split(self, layer: MatrixLayer, matrix: Tensor) -> Params:
        """Return the entries of a matrix of the layer by parameter, in the shapes of the parameters."""
        found = {}
        if layer.weight is not None:
            w = matrix[:, :-1] if layer.bias is not None else matrix
            found[layer.weight] = (w.T if layer.is_transposed else w).reshape(self.anchor[layer.weight].shape)
        if layer.bias is not None:
            found[layer.bias] = matrix[:, -1].reshape(self.anchor[layer.bias].shape)
        return found
