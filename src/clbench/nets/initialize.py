"""Initial weights of a net, other than those of PyTorch."""

from __future__ import annotations

from torch import nn

from clbench.errors import ConfigError, expected
from clbench.nets.heads import Head

INITS = ("torch", "xavier", "kaiming", "zero_head", "xavier_zero_head")
"""Names of initial weights, the values of ``net.init``."""

LAYERS = (nn.Linear, nn.Conv2d)


def initialize(module: nn.Module, init: str) -> None:
    """Set the weights of the linear and convolutional layers of ``module``, in place. Other parameters do not change.

    - ``torch``: no change.
    - ``xavier``: uniform in [-a, a] with a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), and biases of 0.
    - ``kaiming``: normal with standard deviation sqrt(2 / fan_in) (He et al. 2015), and biases of 0.
    - ``zero_head``: weights and biases of heads are 0. All other layers do not change.
    - ``xavier_zero_head``: weights and biases of heads are 0, and other layers are those of ``xavier``, as in Zenke et al. 2017.

    Args:
        module: A net, a body or a head.
        init: One of ``INITS``.

    Raises:
        ConfigError: ``init`` is not one of these names.

    Example:
        >>> from clbench.nets import MultiHead, Net, mlp
        >>> net = Net(mlp((3,), hidden=(4,)), MultiHead(4, sizes=[2, 2]))
        >>> initialize(net, "zero_head")
        >>> [p.any().item() for p in net.head.parameters()]
        [False, False, False, False]
    """
    if init not in INITS:
        raise ConfigError(expected("net.init", init, f"one of {', '.join(INITS)}"))
    if init not in ("torch", "zero_head"):
        for layer in [part for part in module.modules() if isinstance(part, LAYERS)]:
            if init == "kaiming":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if init.endswith("zero_head"):
        for head in [part for part in module.modules() if isinstance(part, Head)]:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
