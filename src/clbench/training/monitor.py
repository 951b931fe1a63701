"""Warn when a quadratic penalty is negligible, dominates the loss or is unstable, and suggest a remedy."""

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

NEGLIGIBLE, DOMINATING = 1e-6, 100.0  # gradient norm of the penalty over that of the loss, medians of a task
SAMPLES = 10  # least number of samples of the gradient norms in a task with at least as many steps
MIN_SAMPLES = 5  # least number of samples for a warning
ONE_LAYER = 0.999  # largest share of the total importance in one layer
NEGATIVE = 1e-3  # largest share of negative importance; that of synaptic intelligence may be slightly negative, as in the paper


class PenaltyWarning(NamedTuple):
    """A warning: its ``kind``, the index of the ``task`` (None without a clbench sequence), and the ``text``."""

    kind: str
    task: int | None
    text: str


class PenaltyMonitor(L.Callback):
    """Callback that checks the penalty of the strategy (``Strategy.penalty_state``) and warns about likely mistakes.

    ``Trainer(callbacks=[EWC(lam=1e3), PenaltyMonitor()])``

    The order of the callbacks does not matter. Each kind of warning is reported at most once:

    - ``penalty_negligible``, ``penalty_dominates``: the gradient norm of the penalty (median over a task) is less than 1e-6
      times, or more than 100 times, that of the loss.
    - ``importance_not_finite``, ``importance_zero``, ``importance_negative``, ``importance_in_one_layer``: checked after
      each task.
    - ``step_too_large``: SGD is unstable (``sgd_bound``). Checked before each task.
    - ``class_incremental``: a penalty alone cannot solve the class-incremental scenario.

    The monitor does not change the training. It stores two numbers per sample of the gradients on the device and reads them
    after each task.

    Args:
        every: Steps between two samples of the gradient norms. Smaller in short tasks, to get about ten samples.
        report: Function that receives the text of a warning, by default ``warnings.warn``.

    Attributes:
        warnings: The warnings so far.
        translate: Function that replaces Python arguments in a text, such as ``clamp=task``, by command-line options.

    Raises:
        ConfigError: ``every`` is below 1.

    Example:
        >>> messages = []
        >>> monitor = PenaltyMonitor(report=messages.append)  # callbacks=[EWC(lam=1e3), monitor]
        >>> monitor.warnings
        []
    """

    watches_step_size = True  # the strategy then leaves that check to it

    def __init__(self, every: int = 50, report: Callable[[str], Any] = warnings.warn) -> None:
        if every < 1:
            raise ConfigError(expected("every", every, "an integer >= 1"))
        self.every = every
        self.report = report
        self.translate: Callable[[str], str] = str
        self.warnings: list[PenaltyWarning] = []
        self._strategy: Strategy | None = None
        self._task: int | None = None
        self._samples: list[Tensor] = []
        self._steps = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Reset the samples. Lightning calls this hook before it loads the state of a resumed fit."""
        self._samples, self._steps = [], 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found = [(c, s) for c in callbacks if isinstance(c, Strategy) and (s := c.penalty_state()) is not None]
        self._strategy, state = found[0] if found else (None, None)
        if self._strategy is None or state is None:
            self.warnings = []  # they were loaded from the shared first task of a run with a penalty
            return
        self._after = callbacks.index(self) > callbacks.index(self._strategy)
        self._task = task_index(trainer)
        self._samples = [sample.to(pl_module.device) for sample in self._samples]
        steps = trainer.estimated_stepping_batches
        self._interval = max(1, min(self.every, int(steps) // SAMPLES)) if math.isfinite(steps) else self.every
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
                self._samples.append(torch.stack([n.to(pl_module.device) for n in norms]))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the penalty after the ``on_train_end`` hooks, in which the strategy consolidates."""
        if (state := self._state()) is None:
            return
        if len(self._samples) >= MIN_SAMPLES:
            loss, penalty = torch.stack(self._samples).T.tolist()
            self._warn(check_gradients(median(loss), median(penalty), state.lam, len(self._samples)))
        self._samples, self._steps = [], 0
        self._warn(check_importance(state.importance))

    def state_dict(self) -> dict[str, Any]:
        return {"warnings": [list(w) for w in self.warnings], "looks": list(self._samples), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warnings = [PenaltyWarning(*w) for w in state_dict["warnings"]]
        self._samples, self._steps = list(state_dict["looks"]), state_dict["steps"]

    def _state(self) -> PenaltyState | None:
        """Return the penalty, None without one."""
        state = None if self._strategy is None else self._strategy.penalty_state()
        return state if state is not None and state.importance else None

    def _warn(self, found: Iterator[tuple[str, str]]) -> None:
        for kind, message in found:
            if kind not in [w.kind for w in self.warnings]:
                text = self.translate(message)
                self.warnings.append(PenaltyWarning(kind, self._task, text))
                self.report(text)


def check_gradients(loss: float, penalty: float, lam: float, steps: int) -> Iterator[tuple[str, str]]:
    """Check the gradient norms of a task.

    The ratio is 1 when loss and penalty are balanced. Far above 1, the weights oscillate around their anchors.
    """
    if not (math.isfinite(loss) and math.isfinite(penalty) and loss > 0):
        return
    ratio = penalty / loss
    measured = f"its gradient norm was {ratio:.2g} times that of the loss (median of {steps} steps of the task)"
    if ratio < NEGLIGIBLE:
        yield (
            "penalty_negligible",
            f"the penalty is negligible: {measured}, so the run is equivalent to fine-tuning. Raise lam={lam:g} by powers of ten "
            "until the two norms are comparable.",
        )
    elif ratio > DOMINATING:
        yield (
            "penalty_dominates",
            f"the penalty dominates: {measured}, so the weights only oscillate around their anchors. Lower lam={lam:g} by powers "
            "of ten, or lower the learning rate.",
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
            f"the importance is not finite in {where}, so the penalty will make the weights non-finite too. Lower the learning "
            "rate, and check that the outputs of the net are finite on all examples.",
        )
        return
    if total == 0:
        yield (
            "importance_zero",
            "the importance of every parameter is 0, so the run is equivalent to fine-tuning. Look for dead units, detached "
            "outputs, or include/exclude patterns that leave no trainable layer.",
        )
        return
    if negative / total > NEGATIVE:
        yield (
            "importance_negative",
            f"{negative / total:.0%} of the importance is negative, so the penalty pushes those weights away from their anchors. "
            "With SI, use clamp=task or a lower learning rate. A custom importance must be >= 0.",
        )
    layer, largest = max(((layer, s[0].item()) for layer, s in sums.items()), key=lambda pair: pair[1])
    if len(sums) > 1 and largest / total > ONE_LAYER:
        yield (
            "importance_in_one_layer",
            f"{layer} has {largest / total:.2%} of the total importance, so the penalty hardly affects the other "
            f"{len(sums) - 1} layers. Look for dead units or detached features, or penalise only the other layers with "
            f"exclude=['{layer}.*'].",
        )


def check_scenario(data: Any) -> Iterator[tuple[str, str]]:
    """Check whether a penalty alone is used in the class-incremental scenario."""
    if not isinstance(data, Task) or data.sequence.scenario.name != "class" or len(data.sequence) < 2:
        return
    if data.sequence.blur:  # the classes are seen together
        return
    tasks, classes = len(data.sequence), sum(data.sequence.sizes)
    yield (
        "class_incremental",
        "class-incremental with a penalty alone: a penalty on the weights cannot teach a net to separate classes that it never "
        "saw together. Expect the result of fine-tuning, which only recognises the newest classes: an average accuracy of about "
        f"{1 / tasks:.2f} (1 of {tasks} tasks; chance is {1 / classes:.2f}). Use a replay strategy (er, der, derpp) or the "
        "task-incremental scenario.",
    )
