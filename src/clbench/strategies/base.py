"""Strategy: a Lightning callback that changes how a sequence of tasks is learned. This one does nothing: fine-tuning."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning as L
import torch

from clbench.data import Task, TaskSequence, find_task, task_index
from clbench.errors import StrategyError, Unstable
from clbench.learner import Learner
from clbench.params import trainable
from clbench.strategies.penalty_state import PenaltyState


class Cautious(NamedTuple):
    """What is assumed of a subclass that may have made an inherited declaration wrong.

    Attributes:
        value: the assumed value, with which a wrong result is impossible: a run is refused, or shares nothing.
        harmless: names that a subclass may define and still inherit the declaration; None = all but ``harmful``.
        harmful: names with which it does not.
    """

    value: Any
    harmless: frozenset[str] | None
    harmful: frozenset[str] = frozenset()


BESIDES_TRAINING = frozenset({"strength", "merge", "cost", "diagnosis", "check"})
"""Methods that run after the first task has ended, or only look."""

SEE_BATCHES = frozenset(
    f"on_{when}" for when in ("train_batch_start", "train_batch_end", "before_zero_grad", "before_backward")
) | {"on_after_backward", "on_before_optimizer_step"}
"""Hooks in which each of several processes has examples of its own."""

OF_THE_CLASS = frozenset(
    f"__{name}__"
    for name in ("module", "qualname", "doc", "annotations", "annotate", "firstlineno", "static_attributes")
) | {"__annotate_func__", "__annotations_cache__", "__parameters__", "__orig_bases__"}
"""Names that Python puts into a class itself."""

DECLARATIONS = frozenset(("shares_first_task", "needs_labels", "needs_learner", "one_process", "per_process"))

INHERITED = {
    "shares_first_task": Cautious(False, BESIDES_TRAINING | {"importance"}),
    "needs_labels": Cautious(True, BESIDES_TRAINING),
    "one_process": Cautious(True, None, SEE_BATCHES),
    "per_process": Cautious(True, None, SEE_BATCHES),
}
"""Declarations that a subclass inherits only while it defines nothing that may make them wrong."""


class Strategy(L.Callback):
    """Fine-tuning: each task is learned from where the last one ended. Every other strategy extends it.

    What a strategy is, it declares by class attributes. A subclass inherits them, but those in ``INHERITED`` only while it
    defines no method that may make them wrong. If it does and does not declare the attribute itself, the cautious value is
    set, so an attribute that was forgotten costs time or is an error, and never gives a wrong result.

    Attributes:
        shares_first_task: up to the end of the first task, before its consolidation, it trains as fine-tuning does. Runs of a
            sweep then train that task once. Or a tuple of the names of the options on which the first task depends, beside
            the class. False: it depends on all options.
        needs_labels: its consolidation reads the labels of the examples.
        needs_learner: it changes the loss or the net, so it needs our Learner and the tasks of a TaskSequence.
        one_process: it works in one process only; a run over several is refused.
        per_process: it sums within a task what is not the same in all processes, so no checkpoint inside a task has it.
        seconds: time spent on consolidation so far.
    """

    shares_first_task: bool | tuple[str, ...] = True
    needs_labels = False
    needs_learner = False
    one_process = False
    per_process = False
    seconds = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, cautious in INHERITED.items():
            declares = next(c for c in cls.__mro__ if name in vars(c))
            more = set().union(*(vars(c) for c in cls.__mro__ if c not in declares.__mro__))
            more -= OF_THE_CLASS | (DECLARATIONS - {name})
            if more & cautious.harmful if cautious.harmless is None else more - cautious.harmless:
                setattr(cls, name, cautious.value)

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        """Reset all state for a new run on ``sequence``. Called before checkpoints are loaded.

        A strategy that needs parameters of its own puts them onto the learner here.
        """
        self.seconds = 0.0

    def check(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if this strategy cannot run on ``sequence``; called before anything is trained."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ConfigError if the module, the data or the number of processes is not what the strategy needs."""
        if stage != "fit":
            return
        name = type(self).__name__
        if self.needs_learner and not (isinstance(pl_module, Learner) and find_task(trainer) is not None):
            raise StrategyError(
                f"{name} changes the loss or the net, so it needs clbench.learner.Learner and the tasks of a TaskSequence, not "
                f"{type(pl_module).__name__}. Use those, or a strategy with a quadratic penalty (EWC, MAS, SI, L2)"
            )
        if self.one_process and trainer.world_size > 1:
            raise StrategyError(
                f"{name} works in one process, but there are {trainer.world_size}. Use trainer.devices=1, or a strategy with a "
                f"quadratic penalty (ewc, mas, si, l2). A strategy of yours that is right in several declares one_process = False"
            )

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        """Return what is trained on when task ``index`` comes."""
        return sequence[index]

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int | None:
        """Return the smallest replay-only batch this strategy will forward, or None."""
        return None

    def penalty_state(self) -> PenaltyState | None:
        """Return the quadratic penalty as it is now, for the penalty monitor and the logs; None if the strategy has none."""
        return None

    def cost(self) -> dict[str, float]:
        """Return what the last consolidation used and what is kept, for metrics.json."""
        return {"examples": 0, "bytes": 0}

    def diagnosis(self, trainer: L.Trainer) -> str:
        """Return why weights may have become non-finite, and what to do."""
        return "lower the learning rate"

    def first_task_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return those of the ``options`` in its configuration on which the first task depends, see ``shares_first_task``.

        Runs of a sweep that agree on these and on all else train the first task once.
        """
        if isinstance(self.shares_first_task, tuple):
            return {name: options.get(name) for name in ("_target_", *self.shares_first_task)}
        return {} if self.shares_first_task else options

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        finite = torch.stack([p.detach().isfinite().all() for p in trainable(pl_module).values()]).all()
        if not finite:
            index = task_index(trainer)
            where = "training" if index is None else f"training on task {index + 1}"
            raise Unstable(f"{where} gave non-finite weights: {self.diagnosis(trainer)}")
