"""Measuring a module without side effects."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode and enable gradients inside the block, and restore everything afterwards, even after an exception.

    Restored are the training flag of every submodule, every buffer bit for bit, and the random states of torch (the CPU and
    the module's GPUs), NumPy and Python. Any ``no_grad``, ``inference_mode`` or ``autocast`` of the caller is disabled inside, so
    a measurement has the precision of the parameters. cuDNN cannot differentiate recurrent layers in evaluation mode, and
    oneDNN hides their steps, so both are disabled for nets that have such layers. Gradient hooks of parameters do not run.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with preserve_state(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = [(m, m.training) for m in module.modules()]
    buffers = [
        (m, name, b, b.detach().clone(), None if b.is_inference() else b._version)
        for m in module.modules()
        for name, b in m._buffers.items()
        if b is not None
    ]
    hooks = [(h, dict(h)) for p in module.parameters() if (h := p._backward_hooks)]
    devices = {t.device for t in (*module.parameters(), *module.buffers())}
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # a compiled net would be compiled again for each kind of batch
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind in {device.type for device in devices} | {"cpu"}:
            if torch.amp.autocast_mode.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        if any(isinstance(m, nn.RNNBase) for m in module.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(_without_onednn())
        try:
            module.eval()
            for current, _ in hooks:
                current.clear()
            yield
        finally:
            for current, saved in hooks:
                current.update(saved)
            random.setstate(python)
            np.random.set_state(numpy)
            for m, training in modes:
                m.training = training
            with torch.no_grad():
                for m, name, buffer, copy, version in buffers:
                    if version is None or buffer._version != version:
                        buffer.copy_(copy)
                    m._buffers[name] = buffer


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Compute without oneDNN. Its switch is set through ``torch._C``, because ``mkldnn.flags`` also warns about Intel GPUs."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)
