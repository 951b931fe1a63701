"""What public code calls "the Fisher" in EWC: one pure function per formula, written from what the sources compute.

Each takes a net x -> outputs (N, C), the examples x (N, ...), y (N,) in the order of the loader, and the loader's batch
size, and returns the importance of every trainable parameter by name. The net is measured in the mode it is in, so
whoever calls decides between eval mode (as here for the comparison) and train mode (as some of the sources do); of the
net, only BatchNorm's statistics can change, and those only in train mode. Augmentation, which the sources that read the
training loader leave on, is not part of a formula.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clbench.importance import fisher
from clbench.params import Params, trainable, zeros_like

CLAMP = 1e-4
"""The largest importance in PyCIL."""


def exact(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """1/N sum_n sum_c p(c|x_n) (d log p(c|x_n))^2: the Fisher itself. clbench: ``fisher=exact``."""
    return fisher(net, [(x, y)], labels="exact")


def van_de_ven(net: nn.Module, x: Tensor, y: Tensor, labels: str, seed: int = 0) -> Params:
    """GMvandeVen/continual-learning, models/cl/continual_learner.py: one example per pass, then a division by N - 1.

    Its ``--fisher-labels`` all, sample, true, pred are our ``labels`` exact, sample, empirical, predicted; the divisor is
    the index of the last example.
    """
    off_by_one = len(x) / (len(x) - 1)
    return {name: f * off_by_one for name, f in fisher(net, [(x, y)], labels=labels, seed=seed).items()}


def mammoth(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """aimagelab/mammoth, models/ewc_on.py: sum_n p(y_n|x_n) (d log p(y_n|x_n))^2 / (batches * batch), y_n the true label.

    One term of the exact sum over classes; the others are left out. One example per pass, in train mode there. The
    divisor counts the last batch as a full one.
    """
    total = zeros_like(trainable(net))
    for x_n, y_n in zip(x.split(1), y.split(1), strict=True):
        loss = cross_entropy(net(x_n), y_n)
        p = (-loss.detach()).exp()
        for name, g in gradient(net, loss).items():
            total[name] += p * g.square()
    return {name: f / (_batches(x, batch) * batch) for name, f in total.items()}


def avalanche(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """ContinualAI/avalanche, training/plugins/ewc.py: 1/B sum_b (d mean loss of batch b)^2, true labels.

    The last batch counts as much as the others although it is smaller.
    clbench: ``fisher=empirical fisher_batch=<batch>`` on shuffled examples, the last batch weighted by its size.
    """
    total = zeros_like(trainable(net))
    for g in _batch_gradients(net, x, y, batch):
        for name in total:
            total[name] += g[name].square()
    return {name: f / _batches(x, batch) for name, f in total.items()}


def pycil(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """G-U-N/PyCIL, models/ewc.py: the formula of Avalanche, clamped from above at 1e-4. In train mode there."""
    return {name: f.clamp(max=CLAMP) for name, f in avalanche(net, x, y, batch).items()}


def facil(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """mmasana/FACIL, src/approach/ewc.py: sum_b n_b (d mean loss of batch b)^2 / (batches * batch), most probable labels.

    Its default ``--fi-sampling-type max_pred``; true and multinomial labels are the other choices. Whole batches only, so
    NaN with fewer examples than one batch. The head is not in the penalty: its importance is zero here. In train mode
    there. clbench: ``fisher=predicted fisher_batch=<batch> strategy.exclude=net.head*``.
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
    """nik-dim/sequel, sequel/algos/pytorch/ewc.py: (sum_b d mean loss of batch b)^2 / B, true labels.

    Gradients are never set to zero between the batches, and each batch overwrites what the last one stored. What is kept
    is the gradient summed over all batches, squared: B times the square of the mean gradient, which goes to zero as the
    net converges. The gradient that the last training step left behind is in the sum too, but not here.
    clbench: B times ``fisher=empirical fisher_batch=<N>``.
    """
    total = zeros_like(trainable(net))
    for g in _batch_gradients(net, x, y, batch):
        for name in total:
            total[name] += g[name]
    return {name: g.square() / _batches(x, batch) for name, g in total.items()}


def gradient(net: nn.Module, loss: Tensor) -> Params:
    """Gradient of ``loss`` by parameter name, zeros where it does not use one; ``.grad`` is not touched."""
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
