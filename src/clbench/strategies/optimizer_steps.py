"""StepWatch: notices steps of an optimiser to which no penalty was added."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepWatch:
    """Sees every step of every ``torch.optim.Optimizer`` in this process, between ``start`` and ``stop``.

    Lightning calls ``on_before_optimizer_step`` only for its own wrapper of an optimiser. A step of the raw optimiser
    (``use_pl_optimizer=False``, ``optimizer.optimizer.step()``, steps in backward hooks) has no penalty.

    Attributes:
        missed: the type of the first optimiser that stepped a parameter without an announcement; None if there was none.
    """

    def __init__(self) -> None:
        self.missed: str | None = None
        self.announced = False
        self._params: set[int] = set()
        self._concerned: dict[int, bool] = {}
        self._handle: Any = None

    def start(self, params: Iterable[Tensor]) -> None:
        """Begin to watch the steps of ``params``."""
        self.stop()
        self.missed, self.announced = None, False
        self._params, self._concerned = {id(p) for p in params}, {}
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.announced or self.missed is not None:
            return
        key = id(optimizer)
        if key not in self._concerned:
            self._concerned[key] = any(id(p) in self._params for g in optimizer.param_groups for p in g["params"])
        if self._concerned[key]:
            self.missed = type(optimizer).__name__
