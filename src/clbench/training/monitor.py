"""PenaltyMonitor: a callback that warns once when a quadratic penalty is negligible, or dominates, and names the remedy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from clbench.data import Task, find_task, task_index
from clbench.errors import ConfigError, expected
from clbench.params import Params
from clbench.strategies import Strategy
from clbench.strategies.norms import gradient_norms
from clbench.strategies.penalty_state import PenaltyState
from clbench.strategies.step_size import check_step_size

NEGLIGIBLE, DOMINATING = 1e-6, 100.0  # norm of the penalty's gradient over that of the loss's, medians over a task
LOOKS = 10  # samples of the gradient norms in a task that has as many steps, at least
FEWEST = 5  # samples that a verdict needs
ONE_LAYER = 0.999  # share of all importance
NEGATIVE = 1e-3  # share of all |importance|; that of synaptic intelligence may be a little below 0, as in the paper


class PenaltyWarning(NamedTuple):
    """A warning: its ``kind``, the ``task`` it came up with (None without a clbench sequence), and the ``text``."""

    kind: str
    task: int | None
    text: str


class PenaltyMonitor(L.Callback):
    """Examines the penalty of the strategy among the callbacks (``Strategy.penalty_state``); its own place there is free.

    ``Trainer(callbacks=[EWC(lam=1e3), PenaltyMonitor()])``

    Kinds: ``penalty_negligible`` and ``penalty_dominates`` (median over a task of its gradient's norm, below 1e-6 or
    above 100 times that of the loss); ``importance_not_finite``, ``importance_zero``, ``importance_negative`` and
    ``importance_in_one_layer`` (when a task has been learned); ``step_too_large`` (``sgd_bound``, when a task begins);
    ``class_incremental``. Each is reported at most once. The monitor changes nothing. It keeps two numbers on the device per
    sample of the gradients and reads them when a task ends.

    Args:
        every: steps between two samples of the gradient norms; fewer in a short task, so that there are about ten.
        report: called with the text of a warning; by default a Python warning.

    Attributes:
        warnings: the warnings so far.

    Raises:
        ConfigError: ``every`` below 1.
    """

    watches_step_size = True  # the strategy then leaves that check to it

    def __init__(self, every: int = 50, report: Callable[[str], Any] = warnings.warn) -> None:
        if every < 1:
            raise ConfigError(expected("every", every, "an integer >= 1"))
        self.every = every
        self.report = report
        self.warnings: list[PenaltyWarning] = []
        self._strategy: Strategy | None = None
        self._task: int | None = None
        self._looks: list[Tensor] = []
        self._steps = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Reset; called before the state of a fit that is resumed is loaded."""
        self._looks, self._steps = [], 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found = [(c, s) for c in callbacks if isinstance(c, Strategy) and (s := c.penalty_state()) is not None]
        self._strategy, state = found[0] if found else (None, None)
        if self._strategy is None or state is None:
            self.warnings = []  # of a run with a penalty, whose first task this one shares
            return
        self._after = callbacks.index(self) > callbacks.index(self._strategy)
        self._task = task_index(trainer)
        self._looks = [look.to(pl_module.device) for look in self._looks]
        steps = trainer.estimated_stepping_batches
        self._interval = max(1, min(self.every, int(steps) // LOOKS)) if math.isfinite(steps) else self.every
        self._warn(check_scenario(find_task(trainer)))
        self._warn(check_step_size(state, trainer.optimizers))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        state = self._state()
        if state is None or state.lam == 0 or self._strategy is None:
            return
        self._steps += 1
        if self._steps % self._interval == 0:
            with torch.no_grad():
                norms = gradient_norms(self._strategy, pl_module, optimizer, added=self._after)
                self._looks.append(torch.stack([n.to(pl_module.device) for n in norms]))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After every callback's ``on_train_end``, so that the strategy has consolidated."""
        if (state := self._state()) is None:
            return
        if len(self._looks) >= FEWEST:
            loss, penalty = torch.stack(self._looks).T.tolist()
            self._warn(check_gradients(median(loss), median(penalty), state.lam, len(self._looks)))
        self._looks, self._steps = [], 0
        self._warn(check_importance(state.importance))

    def state_dict(self) -> dict[str, Any]:
        return {"warnings": [list(w) for w in self.warnings], "looks": list(self._looks), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warnings = [PenaltyWarning(*w) for w in state_dict["warnings"]]
        self._looks, self._steps = list(state_dict["looks"]), state_dict["steps"]

    def _state(self) -> PenaltyState | None:
        """The penalty, None while there is none."""
        state = None if self._strategy is None else self._strategy.penalty_state()
        return state if state is not None and state.importance else None

    def _warn(self, found: Iterator[tuple[str, str]]) -> None:
        for kind, text in found:
            if kind not in [w.kind for w in self.warnings]:
                self.warnings.append(PenaltyWarning(kind, self._task, text))
                self.report(text)


def check_gradients(loss: float, penalty: float, lam: float, steps: int) -> Iterator[tuple[str, str]]:
    """Check the norms of the gradients of a task.

    At a balance of loss and penalty their ratio is 1; far above it, the weights swing about their anchors.
    """
    if not (math.isfinite(loss) and math.isfinite(penalty) and loss > 0):
        return
    ratio = penalty / loss
    said = f"its gradient was {ratio:.2g} times that of the loss (median of {steps} steps of the task)"
    if ratio < NEGLIGIBLE:
        yield (
            "penalty_negligible",
            f"the penalty is negligible: {said}, so this is fine-tuning; raise lam={lam:g} by powers of ten until the two "
            "are comparable",
        )
    elif ratio > DOMINATING:
        yield (
            "penalty_dominates",
            f"the penalty dominates: {said}, so the weights only swing about their anchors; lower lam={lam:g} by powers "
            "of ten, or the learning rate",
        )


def check_importance(importance: Params) -> Iterator[tuple[str, str]]:
    """Check the importance after a task."""
    of_layers: dict[str, list[Tensor]] = {}
    for name, f in importance.items():
        f = f.detach().double()
        numbers = torch.stack([f.abs().sum(), f.clamp(max=0).sum().neg()])
        of_layers.setdefault(name.rpartition(".")[0], []).append(numbers.cpu())
    if not of_layers:
        return
    sums = {layer: torch.stack(numbers).sum(0) for layer, numbers in of_layers.items()}
    total, negative = torch.stack(list(sums.values())).sum(0).tolist()
    if not math.isfinite(total):
        where = ", ".join(layer or "the module" for layer, s in sums.items() if not s.isfinite().all())
        yield (
            "importance_not_finite",
            f"importance is not finite in {where}: the penalty will make the weights so too; lower the learning rate, and look "
            "whether the outputs of the net are finite on all examples",
        )
        return
    if total == 0:
        yield (
            "importance_zero",
            "the importance of every parameter is 0, so this is fine-tuning; the outputs do not depend on "
            "the weights: look for dead units, detached outputs, or include/exclude patterns that leave no layer that learns",
        )
        return
    if negative / total > NEGATIVE:
        yield (
            "importance_negative",
            f"{negative / total:.0%} of the importance is negative: the penalty pushes those weights away from their anchors; "
            "with SI use clamp=true or a lower learning rate; an importance of yours must be >= 0",
        )
    layer, largest = max(((layer, s[0].item()) for layer, s in sums.items()), key=lambda pair: pair[1])
    if len(sums) > 1 and largest / total > ONE_LAYER:
        yield (
            "importance_in_one_layer",
            f"{layer} has {largest / total:.2%} of all importance, so the other {len(sums) - 1} layers are free to forget; look "
            f"for dead units or detached features, or penalise the others alone with exclude=['{layer}.*']",
        )


def check_scenario(data: Any) -> Iterator[tuple[str, str]]:
    """Check whether a penalty alone is used class-incrementally."""
    if not isinstance(data, Task) or data.sequence.scenario.name != "class" or len(data.sequence) < 2:
        return
    tasks, classes = len(data.sequence), sum(data.sequence.sizes)
    yield (
        "class_incremental",
        "class-incremental with a penalty alone: no penalty on weights teaches a net to tell apart classes it never saw "
        f"together; expect about what fine-tuning gets, only the newest classes right: an average accuracy of about "
        f"{1 / tasks:.2f} (1 of {tasks} tasks; chance is {1 / classes:.2f}); use replay (strategy=er, der, derpp) or "
        "scenario=task",
    )
