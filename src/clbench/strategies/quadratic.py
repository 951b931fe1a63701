"""Quadratic: the penalty for old tasks, q(theta) = sum_i F_i (theta_i - a_i)^2 + c.

A sum of quadratics is a quadratic (complete the square), so the memory of a strategy does not grow with the number of tasks.
EWC with one penalty per task (Kirkpatrick et al. 2017) and the recursive form (Huszar 2018, Schwarz et al. 2018) both keep two
tensors per parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clbench.params import Params, size_in_bytes


class Quadratic(NamedTuple):
    """q(theta) = sum_i importance_i * (theta_i - anchor_i)^2 + constant. The penalty of a strategy is ``lam / 2 * q(theta)``.

    ``importance`` and ``anchor`` have the same names and shapes. ``constant`` is a scalar. They may be on another device than the
    parameters, and are then copied one after another.
    """

    importance: Params
    anchor: Params
    constant: Tensor

    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return q(theta), a scalar. Parameters that are not in both the quadratic and ``params`` are ignored."""
        known = [name for name in self.importance if name in params]
        at = {name: params[name].device for name in known}
        return self.constant + sum(
            (self.importance[name].to(at[name]) * (params[name] - self.anchor[name].to(at[name])) ** 2).sum()
            for name in known
        )

    def half_gradient(self, params: Mapping[str, Tensor]) -> Params:
        """Return the gradient of q / 2 at theta, F (theta - a), for each name in both the quadratic and ``params``."""
        names = [name for name in self.importance if name in params]
        if not names:
            return {}
        theta = [params[name].detach() for name in names]
        distance = torch._foreach_sub(theta, [self.anchor[name].to(params[name].device) for name in names])
        torch._foreach_mul_(distance, [self.importance[name].to(params[name].device) for name in names])
        return dict(zip(names, distance, strict=True))

    def curvature(self) -> float:
        return max((f.max().item() for f in self.importance.values()), default=0.0)

    def size_in_bytes(self) -> int:
        return size_in_bytes(self.importance) + size_in_bytes(self.anchor)

    def state(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Quadratic:
        return cls(*(state[name] for name in cls._fields))


def quadratic(importance: Params, anchor: Params) -> Quadratic:
    """Return the quadratic of one task with constant 0. ``add`` needs an importance >= 0; that of SI may be negative."""
    some = next(iter(importance.values()), torch.zeros(()))
    return Quadratic(importance, anchor, torch.zeros((), dtype=some.dtype, device=some.device))


def add(p: Quadratic, q: Quadratic) -> Quadratic:
    """Return the quadratic p + q, by completing the square.

    F = F1 + F2,  a = a1 + F2/F (a2 - a1),  c = c1 + c2 + sum F1 F2/F (a2 - a1)^2. Where F = 0, a = a2.
    A parameter that only one of the two has is taken from that one.
    """
    importance, anchor = dict(p.importance), dict(p.anchor)
    constant = p.constant + q.constant
    for name, f2 in q.importance.items():
        if name not in p.importance:
            importance[name], anchor[name] = f2, q.anchor[name]
            continue
        f1, a1, a2 = p.importance[name], p.anchor[name], q.anchor[name]
        f = f1 + f2
        share = torch.where(
            f > 0, f2 / f, torch.ones_like(f)
        )  # share of q in the sum; where F = 0, the newer anchor is used
        importance[name] = f
        anchor[name] = torch.where(f2 == f, a2, a1 + share * (a2 - a1))  # exactly a2 where F1 = 0
        constant = constant + (f1 * share * (a2 - a1) ** 2).sum()
    return Quadratic(importance, anchor, constant)


def recentre(p: Quadratic, q: Quadratic, decay: float) -> Quadratic:
    """Return one quadratic at the newest anchor: F = decay * F1 + F2, a = a2 (Huszar 2018; Schwarz et al. 2018, eq. 9).

    A parameter that only ``p`` has keeps its anchor and its decayed importance.
    """
    importance = {name: decay * f for name, f in p.importance.items()}
    anchor = dict(p.anchor) | q.anchor
    for name, f2 in q.importance.items():
        importance[name] = importance[name] + f2 if name in importance else f2
    return Quadratic(importance, anchor, q.constant)
