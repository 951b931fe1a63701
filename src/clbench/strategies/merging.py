"""Merging: after each task, the weights become a mean of the weights that each task has reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import nn

from clbench.data import TaskSequence
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import Params, move_like, size_in_bytes, snapshot, trainable
from clbench.strategies.argument_checks import check_choice
from clbench.strategies.ewc import EWC, FisherOptions


class Merging(EWC):
    """Weight merging: incremental moment matching (Lee et al. 2017) and Fisher merging (Matena and Raffel 2022).

    After task t the weights become sum_k F_k theta_k / sum_k F_k over k = 1, ..., t, where theta_k are the weights that training
    on task k has reached. This is the minimum of the sum of the penalties of ``EWC``, so two tensors per parameter are enough,
    and one more for the start of the next task. Where all F_k are 0, the newest weights are kept. Buffers, such as the statistics
    of BatchNorm, are not merged.

    ======================  =================  ====================
    method                  ``weighting``      ``start``
    ======================  =================  ====================
    mean-IMM                ``equal``          ``last``
    mode-IMM                ``fisher``         ``last``
    Fisher merging          ``fisher``         ``initial``
    ======================  =================  ====================

    There is no penalty during training. That is IMM with weight transfer, and not with its L2 or drop transfer.

    Args:
        weighting: F_k. ``fisher`` is the Fisher information of task k. ``equal`` is 1 for a weight that task k has changed and 0
            for others, such as the output layers of other tasks.
        start: Weights from which a task is trained: ``last``, those that the last task has reached before they were merged, as in
            the code of IMM, or ``initial``, those before the first task.
        options: ``fisher``, ``samples`` and the other options of ``EWC``. With ``weighting="equal"`` nothing is measured.

    Raises:
        ConfigError: A value is out of range. See also ``ImportanceStrategy``.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> merging, module = Merging(weighting="equal"), BoringModel()  # any LightningModule
        >>> for task in range(2):
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[merging]).fit(module)
        >>> merging.penalty.importance["layer.bias"]  # the number of tasks in the mean
        tensor([2., 2.])
    """

    shares_first_task = ("include", "exclude")  # they select the weights at the start, which are stored
    needs_labels = False

    def __init__(self, weighting: str = "fisher", start: str = "last", **options: Unpack[FisherOptions]) -> None:
        super().__init__(0.0, **options)
        self.weighting = check_choice("weighting", weighting, ("fisher", "equal"))
        self.start = check_choice("start", start, ("last", "initial"))
        if self._segment is not None:
            raise StrategyError(
                f"{self._segment}: expected None, because weights are merged when a task ends. Leave out every"
            )
        if self.keep_previous:
            raise StrategyError(
                "keep_previous=True: expected False, because the weights that a task has reached are replaced by the mean, and "
                "cannot be measured again. Leave it out"
            )
        self._begin: Params = {}  # weights at the start of the task

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self._begin = {}

    def check_module(self, module: nn.Module, batch: Any) -> None:
        if self.weighting == "fisher":
            super().check_module(module, batch)

    @torch.no_grad()
    def begin(self, module: nn.Module, resumed: bool = False) -> None:
        params = self._selected(module)
        if not resumed:
            for name in params.keys() & self._begin.keys():
                params[name].copy_(self._begin[name])
            self._begin = snapshot(params) | self._begin
        super().begin(module, resumed)

    def _consolidate(self, module: nn.Module, measure: Callable[[], Params], replace: bool = False) -> None:
        """Merge the weights that the task has reached into the mean, and load the mean."""
        super()._consolidate(module, measure if self.weighting == "fisher" else lambda: self._changed(module), replace)
        assert self.penalty is not None
        params = self._selected(module)
        if self.start == "last":
            self._begin = snapshot(params)
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(self.penalty.anchor[name])

    def _changed(self, module: nn.Module) -> Params:
        """Return 1 for each weight that the task has changed, and 0 for others."""
        begin = move_like(self._begin, params := trainable(module))
        return {n: (p != begin[n]).to(p.dtype) for n, p in params.items() if n in begin}

    def cost(self) -> dict[str, float]:
        cost = super().cost()
        return {**cost, "bytes": cost["bytes"] + size_in_bytes(self._begin)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begin": self._begin}  # never changed in place

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._begin = state_dict["begin"]
