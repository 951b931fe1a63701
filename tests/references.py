"""Slow and obvious reference implementations: one example, one label and one backward pass at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Params = dict[str, Tensor]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def gradients(module: nn.Module, scalar: Tensor) -> Params:
    """Return the gradient of ``scalar`` for every trainable parameter, zeros if it does not depend on the parameter."""
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(scalar, list(params.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), grads, strict=True)}


def nll(z: Tensor, y: Tensor, loss: str) -> Tensor:
    """Return the loss of one example, with z (1, C) and y (1,) or (1, C)."""
    if loss == "cross_entropy":
        return F.cross_entropy(z, y)
    if loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype))
    return F.mse_loss(z, y)


def weighted_losses(z: Tensor, y: Tensor, labels: str, loss: str) -> list[tuple[float, Tensor]]:
    """Return the losses of one example with outputs z (1, C) at each label, with the weights of the labels."""
    if labels == "empirical":
        cases = [(1.0, y)]
    elif labels == "weighted":
        cases = [(z.softmax(1)[0, y[0]].item(), y)]
    elif labels == "reversed":
        cases, z = [(1.0, y)], -z
    elif labels == "predicted":
        cases = [(1.0, z.argmax(1) if loss == "cross_entropy" else (z[:, 0] > 0).long())]
    elif loss == "cross_entropy":
        cases = [(p.item(), torch.tensor([c])) for c, p in enumerate(z.softmax(1)[0])]
    elif loss == "binary_cross_entropy":
        p = z.sigmoid().item()
        cases = [(p, torch.tensor([1])), (1 - p, torch.tensor([0]))]
    else:  # shifts of +-sqrt(C/2) in one coordinate have the mean and covariance of the Gaussian
        c = z.shape[1]
        shift = (c / 2) ** 0.5 * torch.eye(c, dtype=z.dtype)
        # the gradient is linear in the target and the coordinates are independent, so the squares add
        cases = [(1.0, (z + s).detach()) for s in shift]
    return [(weight, nll(z, label, loss)) for weight, label in cases]


def per_example(module: nn.Module, x: Tensor, y: Tensor, labels: str, loss: str) -> list[Params]:
    """Return the Fisher of every example, by a loop over examples and labels."""
    module.eval()
    values = []
    for i in range(len(x)):
        total: Params = {}
        for weight, value in weighted_losses(module(x[i : i + 1]), y[i : i + 1], labels, loss):
            for name, g in gradients(module, value).items():
                total[name] = total.get(name, torch.zeros_like(g)) + weight * g.square()
        values.append(total)
    return values


def kronecker(
    module: nn.Module, x: Tensor, y: Tensor, labels: str = "exact", loss: str = "cross_entropy"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and G of every linear and convolutional layer that is called once and trained, by the name of its weight.

    Loops over examples, labels and positions. The input of a position is the gradient of the layer's first output there for the
    weights of that output. The gradients at the outputs are those of zeros that are added to them.
    """
    module.eval()
    called: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def add_zeros(name: str, layer: nn.Module, out: Tensor) -> Tensor:
        zeros = torch.zeros_like(out, requires_grad=True)
        called[name] = layer, out, zeros
        return out + zeros

    def rows(layer: nn.Module, t: Tensor) -> Tensor:
        """Return the values (P, O) at the positions of one example."""
        return t.reshape(-1, t.shape[-1]) if isinstance(layer, nn.Linear) else t[0].flatten(1).T

    weights = {name for name, p in module.named_parameters() if p.requires_grad}
    named = {f"{n}.weight".lstrip("."): m for n, m in module.named_modules() if isinstance(m, LAYERS)}
    layers = {name: layer for name, layer in named.items() if name in weights}
    hooks = [
        layer.register_forward_hook(lambda layer, _, out, name=name: add_zeros(name, layer, out))
        for name, layer in layers.items()
    ]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for i in range(len(x)):
        called.clear()
        losses = weighted_losses(module(x[i : i + 1]), y[i : i + 1], labels, loss)
        for name, (layer, out, zeros) in called.items():
            outputs = rows(layer, out)
            a_sum = g_sum = torch.zeros((), dtype=out.dtype)
            for output in outputs[:, 0]:
                a = torch.autograd.grad(output, layer.weight, retain_graph=True)[0][0].flatten()
                a = a if layer.bias is None else torch.cat([a, torch.ones(1, dtype=a.dtype)])
                a_sum = a_sum + torch.outer(a, a)
            for weight, value in losses:
                (g,) = torch.autograd.grad(value, zeros, retain_graph=True, materialize_grads=True)
                for at in rows(layer, g):
                    g_sum = g_sum + weight * torch.outer(at, at) / len(outputs)
            before = found.get(name, (torch.zeros(()), torch.zeros(())))
            found[name] = before[0] + a_sum / len(x), before[1] + g_sum / len(x)
    for hook in hooks:
        hook.remove()
    return found


def per_example_mas(module: nn.Module, x: Tensor) -> list[Params]:
    """Return |d ||f(x)||^2 / d theta| of every example."""
    module.eval()
    return [
        {n: g.abs() for n, g in gradients(module, module(x[i : i + 1]).square().sum()).items()} for i in range(len(x))
    ]


def mean(values: list[Params]) -> Params:
    """Return the mean over examples."""
    return {n: torch.stack([v[n] for v in values]).mean(0) for n in values[0]}


def standard_error(values: list[Params], total: int) -> Params:
    """Return the standard error of the mean, with the finite-population correction if examples were left out."""
    n = len(values)
    correction = 1.0 if n == total else 1 - n / total
    return {k: (torch.stack([v[k] for v in values]).var(0) * correction / n).sqrt() for k in values[0]}


def fisher(module: nn.Module, x: Tensor, y: Tensor, labels: str = "exact", loss: str = "cross_entropy") -> Params:
    """Return the mean over examples of the Fisher of one example."""
    return mean(per_example(module, x, y, labels, loss))


def mas(module: nn.Module, x: Tensor) -> Params:
    """Return the mean over examples of the importance of one example."""
    return mean(per_example_mas(module, x))
