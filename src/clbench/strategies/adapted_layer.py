"""AdaptedLayer: a layer of peft with an adapter of low rank, seen as one weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clbench.errors import StrategyError
from clbench.params import Params, named_parameters, widen


class AdaptedLayer(NamedTuple):
    """A layer with the weight W + s B A, of which only the factors A (rank, I) and B (O, rank) are trained.

    Attributes:
        layer: The layer of peft (``peft.tuners.lora.LoraLayer``).
        adapter: Name of its adapter.
        name: Name of the frozen weight W in the module.
        factors: A and B by their names in the module.
    """

    layer: Any
    adapter: str
    name: str
    factors: Params

    @property
    def base(self) -> Tensor:
        """The frozen weight W."""
        weight: Tensor = self.layer.get_base_layer().weight
        return weight

    def weight(self) -> Tensor:
        """Return W + s B A with the shape of W, in float32 or wider. It is differentiable in A and B."""
        update: Tensor = self.layer.get_delta_weight(self.adapter)
        return widen(self.base) + update

    def pull_back(self, gradient: Tensor) -> Params:
        """Return the gradients of the trained factors for the gradient G of the weight: s B^T G of A, and s G A^T of B."""
        factors = {name: p for name, p in self.factors.items() if p.requires_grad}
        if not factors:
            return {}
        with torch.enable_grad():
            weight = self.weight()
            grads = torch.autograd.grad(weight, list(factors.values()), gradient.to(weight.dtype))
        return dict(zip(factors, grads, strict=True))

    def merge(self) -> None:
        """Add s B A to W, and start a new adapter: A random and B zero."""
        with torch.no_grad():
            self.base.add_(self.layer.get_delta_weight(self.adapter).to(self.base.dtype))
            self.layer.reset_lora_parameters(self.adapter, True)


def adapted_layers(module: nn.Module) -> list[AdaptedLayer]:
    """Return the layers of ``module`` with a trained adapter of peft.

    Raises:
        ConfigError: There is none, or the weight of one is not W + s B A with a frozen W.

    Example:
        >>> from clbench.nets import add_lora
        >>> net = add_lora(nn.Sequential(nn.Linear(3, 2)), rank=1, targets=["0"])
        >>> [layer.name for layer in adapted_layers(net)]
        ['0.base_layer.weight']
    """
    names = {id(p): name for name, p in named_parameters(module).items()}
    found = [_adapted(layer, names) for layer in _lora_layers(module)]
    if not found:
        raise StrategyError(
            f"EWCLoRA: expected a net with adapters of low rank, got none in {type(module).__name__}. Use "
            "net.lora={rank:8,targets:[PATTERN]}, add adapters with peft, or choose strategy=ewc"
        )
    return found


def _lora_layers(module: nn.Module) -> list[Any]:
    try:
        from peft.tuners.lora import LoraLayer  # imported only if used, because it is optional and the import is slow
    except ModuleNotFoundError:  # then no module can have its layers
        return []
    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


def _adapted(layer: Any, names: dict[int, str]) -> AdaptedLayer:
    base = layer.get_base_layer()
    name = names[id(base.weight)]
    added = {names[id(p)]: p for part, p in layer.named_parameters() if not part.startswith("base_layer.")}
    of = [[id(factor.weight) for factor in part.values()] for part in (layer.lora_A, layer.lora_B)]
    is_plain = len(added) == 2 and [len(part) for part in of] == [1, 1] and not layer.merged
    if not is_plain or any(p.requires_grad for p in base.parameters()) or not base.weight.is_floating_point():
        raise StrategyError(
            f"{name}: expected a frozen layer with one adapter of two factors, got trained parameters or another adapter "
            f"({', '.join(added) or 'merged'}). Use peft.LoraConfig without DoRA, biases or layers to save"
        )
    return AdaptedLayer(layer, next(iter(layer.lora_A)), name, added)
