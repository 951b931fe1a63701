"""EWC-LoRA: EWC on the weights of layers with adapters of low rank, instead of on the factors of the adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clbench.data import TaskSequence
from clbench.learner import Learner
from clbench.params import Params, trainable
from clbench.strategies import quadratic
from clbench.strategies.adapted_layer import AdaptedLayer, adapted_layers
from clbench.strategies.consolidation import freezing, requiring_grad
from clbench.strategies.ewc import EWC
from clbench.strategies.penalty_state import PenaltyState, empty
from clbench.strategies.quadratic import Quadratic


@dataclass(frozen=True)
class LowRankPenalty(PenaltyState):
    """A penalty on the weights of adapted layers, as a function of the parameters that are trained.

    Attributes:
        layers: The layers whose weight has an importance.
    """

    layers: tuple[AdaptedLayer, ...] = ()

    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        return super().value({**params, **{layer.name: layer.weight() for layer in self.layers}})

    def gradient(self, params: Mapping[str, Tensor]) -> Params:
        mine = {name: g for layer in self.layers for name, g in self.half_gradient(layer).items() if name in params}
        return super().gradient(params) | {n: (g * self.strength).to(params[n].dtype) for n, g in mine.items()}

    def half_gradient(self, layer: AdaptedLayer) -> Params:
        """Return the gradient of q / 2 for the factors of a layer: that of its weight, F (W + s B A - a), by the chain rule."""
        with torch.no_grad():
            halves = self.quadratic.half_gradient({layer.name: layer.weight()})
        return layer.pull_back(halves[layer.name])


class EWCLoRA(EWC):
    """EWC of the whole update of layers with adapters of low rank (Zheng et al. 2026, arXiv 2602.17559).

    A layer has the weight W + s B A, and only A and B are trained. When a task ends, s B A is added to W, a new adapter starts
    (A random, B zero), and the Fisher F of W is measured. While task t is trained, the penalty is

        lam/2 * sum_ij (F_1 + ... + F_{t-1})_ij (s B A)_ij^2

    EWC penalises A and B one by one instead, although only their product acts on the outputs. Other trained parameters, such as
    the output layer, have the penalty of ``OnlineEWC`` with gamma=1.

    The code of the authors squares the gradient of a batch with true labels, which is ``fisher="empirical"`` with
    ``fisher_batch=128``. The Fisher here is the one that the paper defines. That code also adds up A and B of the tasks
    separately. Here the products are added up, as in the paper.

    Save the whole ``state_dict``, because the finished tasks are in W and not in the adapter.

    Args:
        lam: Strength of the penalty, >= 0.
        options: ``fisher``, ``samples`` and the other options of ``EWC``. In ``include`` and ``exclude`` an adapted layer has the
            name of W, such as ``net.body.1.base_layer.weight``.

    Raises:
        ConfigError: A value is out of range. When training starts, the module has no adapted layer, or an unusual one.

    Example:
        >>> from clbench.nets import add_lora
        >>> net, strategy = add_lora(nn.Sequential(nn.Linear(3, 2)), rank=1, targets=["0"]), EWCLoRA(lam=1.0)
        >>> strategy.consolidate(net, [torch.ones(4, 3)])
        >>> strategy.penalty.importance["0.base_layer.weight"].shape
        torch.Size([2, 3])
    """

    shares_first_task = True  # adapters are merged after the last step
    needs_labels = False
    one_process = False
    per_process = False
    merges_by_name = True

    _layers: tuple[AdaptedLayer, ...] = ()

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        adapted_layers(learner)  # a net without adapters is an error before training
        super().attach(learner, sequence)

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return quadratic.recentre(old, new, 1.0)

    def begin(self, module: nn.Module, resumed: bool = False) -> None:
        self._layers = tuple(adapted_layers(module))
        super().begin(module, resumed)

    def check_module(self, module: nn.Module, batch: Any) -> None:
        with self.measurable(module):
            super().check_module(module, batch)

    def penalty_state(self) -> LowRankPenalty:
        return self._state(self._layers)

    def value(self, pl_module: nn.Module) -> Tensor:
        return self._state(adapted_layers(pl_module)).value(trainable(pl_module))

    def add_gradients(self, optimizer: Optimizer) -> None:
        super().add_gradients(optimizer)
        if self.penalty is None or self.strength == 0:
            return
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        state = self.penalty_state()
        for layer in state.layers:
            half = state.half_gradient(layer)
            params = {name: layer.factors[name] for name in half if id(layer.factors[name]) in stepped}
            used = {name: p for name, p in params.items() if p.grad is not None or half[name].any()}
            self._add_gradient({name: half[name] for name in used}, used)

    @contextmanager
    def measurable(self, module: nn.Module) -> Iterator[None]:
        """Let the weights of the adapted layers require grad inside, instead of the factors."""
        layers = adapted_layers(module)
        weights = [layer.base for layer in layers]
        factors = [p for layer in layers for p in layer.factors.values()]
        with super().measurable(module), freezing(factors), requiring_grad(weights):
            yield

    def _consolidate(self, module: nn.Module, measure: Callable[[], Params], replace: bool = False) -> None:
        layers = adapted_layers(module)
        for layer in layers:
            layer.merge()
        super()._consolidate(module, measure, replace)
        self._unmeasured -= {name for layer in layers for name in layer.factors}  # measured as a part of the weights

    def _acts_on(self, names: set[str]) -> set[str]:
        acts_on = super()._acts_on(names)
        layers = [layer for layer in self._layers if layer.name in acts_on]
        return acts_on.union(*(layer.factors for layer in layers)) - {layer.name for layer in layers}

    def _state(self, layers: Iterable[AdaptedLayer]) -> LowRankPenalty:
        q = self.penalty or empty()
        return LowRankPenalty(q, self.strength, self.lam_now, tuple(x for x in layers if x.name in q.importance))
