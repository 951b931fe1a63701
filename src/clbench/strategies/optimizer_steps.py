"""StepWatch: notices steps of an optimiser to which no penalty was added."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from clbench.params import Params, fingerprints


class StepWatch:
    """Sees every step of every ``torch.optim.Optimizer`` in this process, between ``start`` and ``stop``.

    Lightning calls ``on_before_optimizer_step`` only for its own wrapper of an optimiser. A step of the raw optimiser
    (``use_pl_optimizer=False``, ``optimizer.optimizer.step()``, steps in backward hooks) has no penalty. Parameters and not
    optimisers are compared, because an optimiser may step through another one that it wraps.

    Attributes:
        missed: Type of the first optimiser that stepped a parameter without an announcement, None if there was none.
    """

    def __init__(self) -> None:
        self.missed: str | None = None
        self._params: Params = {}
        self._before: dict[str, int] = {}
        self._ids: set[int] = set()
        self._announced: set[int] = set()
        self._ever = False
        self._handle: Any = None

    def start(self, params: Params) -> None:
        """Start to watch the steps of ``params``."""
        self.stop()
        self.missed, self._ever, self._announced = None, False, set()
        self._params, self._before, self._ids = params, fingerprints(params), {id(p) for p in params.values()}
        self._handle = register_optimizer_step_post_hook(self._stepped)

    def announce(self, optimizer: Optimizer) -> None:
        """Record that the penalty was added for a step of ``optimizer``."""
        self._ever = True
        self._announced |= {id(p) for group in optimizer.param_groups for p in group["params"]}

    def start_batch(self) -> None:
        """Forget the announcements of earlier batches."""
        self._announced = set()

    def stop(self) -> list[str]:
        """Stop. Return the names of the parameters that changed, if no step was announced since ``start``."""
        if self._handle is None:
            return []
        self._handle.remove()
        params, self._params, self._handle = self._params, {}, None
        now = {} if self._ever else fingerprints(params)
        return [name for name, value in now.items() if value != self._before[name]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        params = (id(p) for group in optimizer.param_groups for p in group["params"])
        if self.missed is None and any(p in self._ids and p not in self._announced for p in params):
            self.missed = type(optimizer).__name__
