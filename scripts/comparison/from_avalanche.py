"""Importances computed by the plugins of Avalanche (avalanche-lib 0.6.0) on our network and data."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from clbench.params import Params

INSTALL = "pip install avalanche-lib==0.6.0"


def available() -> bool:
    """Whether Avalanche can be imported."""
    return find_spec("avalanche") is not None


def ewc(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return ``EWCPlugin.compute_importances``. It leaves ``net`` in train mode."""
    plugin = _plugins().EWCPlugin(ewc_lambda=1.0)
    found = plugin.compute_importances(net, nn.CrossEntropyLoss(), _optimizer(net), _data(x, y), "cpu", batch)
    return _tensors(net, found)


def mas(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return ``MASPlugin._get_importance`` of a minimal strategy object. It leaves ``net`` in train mode."""
    strategy = SimpleNamespace(
        model=net,
        experience=SimpleNamespace(dataset=_data(x, y)),
        optimizer=_optimizer(net),
        device="cpu",
        train_mb_size=batch,
    )
    return _tensors(net, _plugins().MASPlugin()._get_importance(strategy))


def _plugins() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.training import plugins
    return plugins


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)  # only its zero_grad is called


def _data(x: Tensor, y: Tensor) -> TensorDataset:
    return TensorDataset(x, y, torch.zeros_like(y))  # (x, y, task label)


def _tensors(net: nn.Module, found: dict[str, Any]) -> Params:
    net.zero_grad()
    return {name: importance.data.detach().clone() for name, importance in found.items()}
