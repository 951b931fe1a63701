"""How much memory the temporaries of a measurement may take."""

from __future__ import annotations

import torch

CPU_FORWARD = 64 * 2**20
"""Activations and layer gradients of one forward pass on a CPU, in bytes."""

CPU_INNER = 4 * 2**20
"""Per-example weight gradients held at once on a CPU: small enough to stay near the caches."""


def budgets(device: torch.device) -> tuple[int, int]:
    """(forward, inner) bytes: fixed on a CPU, an eighth of what is free on a GPU for each."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 8, free // 8
    return CPU_FORWARD, CPU_INNER
