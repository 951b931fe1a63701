"""Formulas that public code calls "the Fisher" in EWC: one pure function per formula, written from the source code.

Each function takes a network x -> outputs (N, C), the examples x (N, ...) and y (N,) in the order of the loader, and the
loader's batch size. It returns the importance of every trainable parameter by name. The network keeps its mode, so the caller
chooses between eval mode (used in this comparison) and train mode (used by some sources). Only the statistics of BatchNorm can
change, and only in train mode. Some sources read the training loader with its augmentation, which is not part of a formula.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clbench.importance import fisher
from clbench.params import Params, trainable, zeros_like

CLAMP = 1e-4
"""Upper bound of an importance in PyCIL."""


def exact(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the exact Fisher 1/N sum_n sum_c p(c|x_n) (d log p(c|x_n))^2. clbench: ``fisher=exact``."""
    return fisher(net, [(x, y)], labels="exact")


def van_de_ven(net: nn.Module, x: Tensor, y: Tensor, labels: str, seed: int = 0) -> Params:
    """Return the formula of GMvandeVen/continual-learning, models/cl/continual_learner.py.

    It passes one example at a time and divides by N - 1, the index of the last example. Its ``--fisher-labels`` all, sample,
    true, pred are our ``labels`` exact, sample, empirical, predicted.
    """
    off_by_one = len(x) / (len(x) - 1)
    return {name: f * off_by_one for name, f in fisher(net, [(x, y)], labels=labels, seed=seed).items()}


def mammoth(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the formula of aimagelab/mammoth, models/ewc_on.py: sum_n p(y_n|x_n) (d log p(y_n|x_n))^2 / (batches * batch).

    y_n is the true label, so this is one term of the exact sum over classes. The source passes one example at a time, in train
    mode. The divisor counts the last batch as a full one.
    """
    total = zeros_like(trainable(net))
    for x_n, y_n in zip(x.split(1), y.split(1), strict=True):
        loss = cross_entropy(net(x_n), y_n)
        p = (-loss.detach()).exp()
        for name, g in gradient(net, loss).items():
            total[name] += p * g.square()
    return {name: f / (_batches(x, batch) * batch) for name, f in total.items()}


def avalanche(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the formula of ContinualAI/avalanche, training/plugins/ewc.py: 1/B sum_b (d mean loss of batch b)^2, true labels.

    The last batch has the same weight as the others although it is smaller.
    clbench: ``fisher=empirical fisher_batch=<batch>`` on shuffled examples, with the last batch weighted by its size.
    """
    total = zeros_like(trainable(net))
    for g in _batch_gradients(net, x, y, batch):
        for name in total:
            total[name] += g[name].square()
    return {name: f / _batches(x, batch) for name, f in total.items()}


def pycil(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the formula of G-U-N/PyCIL, models/ewc.py: that of Avalanche, clamped to at most 1e-4, there in train mode."""
    return {name: f.clamp(max=CLAMP) for name, f in avalanche(net, x, y, batch).items()}


def facil(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the formula of mmasana/FACIL, src/approach/ewc.py: sum_b n_b (d mean loss of batch b)^2 / (batches * batch).

    The labels are the most probable ones, as in its default ``--fi-sampling-type max_pred``. True and multinomial labels are the
    alternatives. Only whole batches are used, so the result is nan with fewer examples than one batch. The penalty excludes the
    head, so its importance is zero here. The source uses train mode.
    clbench: ``fisher=predicted fisher_batch=<batch> strategy.exclude=net.head*``.
    """
    whole = len(x) // batch
    total = zeros_like(trainable(net))
    for x_b in x.split(batch)[:whole]:
        z = net(x_b)
        for name, g in gradient(net, cross_entropy(z, z.argmax(1))).items():
            if not name.startswith("head."):
                total[name] += len(x_b) * g.square()
    return {name: f / x.new_tensor(whole * batch) for name, f in total.items()}


def sequel(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the formula of nik-dim/sequel, sequel/algos/pytorch/ewc.py: (sum_b d mean loss of batch b)^2 / B, true labels.

    The source does not reset gradients between batches, and each batch overwrites the stored value. The result is the square of
    the gradient summed over all batches: B times the square of the mean gradient, which approaches zero as the network
    converges. The source also adds the gradient of the last training step, which is left out here.
    clbench: B times ``fisher=empirical fisher_batch=<N>``.
    """
    total = zeros_like(trainable(net))
    for g in _batch_gradients(net, x, y, batch):
        for name in total:
            total[name] += g[name]
    return {name: g.square() / _batches(x, batch) for name, g in total.items()}


def gradient(net: nn.Module, loss: Tensor) -> Params:
    """Return the gradient of ``loss`` by parameter name, zeros for unused parameters. ``.grad`` does not change."""
    params = trainable(net)
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p, requires_grad=False) if g is None else g
        for (name, p), g in zip(params.items(), grads, strict=True)
    }


def _batch_gradients(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Iterator[Params]:
    for x_b, y_b in zip(x.split(batch), y.split(batch), strict=True):
        yield gradient(net, cross_entropy(net(x_b), y_b))


def _batches(x: Tensor, batch: int) -> int:
    return -(-len(x) // batch)
