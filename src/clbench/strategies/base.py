"""Strategy: a Lightning callback that changes how a sequence of tasks is learned. The base class is fine-tuning."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from clbench.data import Batch, Task, TaskSequence, find_task, task_index
from clbench.data.targets import KINDS, WHAT
from clbench.errors import StrategyError, Unstable
from clbench.learner import Learner
from clbench.params import trainable
from clbench.strategies.penalty_state import PenaltyState


class Cautious(NamedTuple):
    """The safe value of a declaration, for a subclass whose own methods may make the inherited value wrong.

    Attributes:
        value: The safe value. With it a run is refused or shares no first task, but its result is never wrong.
        harmless: Names that a subclass may define and still inherit the declaration. None allows all names but ``harmful``.
        harmful: Names with which the declaration is not inherited.
    """

    value: Any
    harmless: frozenset[str] | None
    harmful: frozenset[str] = frozenset()


OUTSIDE_TRAINING = frozenset({"strength", "merge", "cost", "diagnosis", "check"})
"""Methods that run after the first task has ended, or change nothing."""

BATCH_HOOKS = frozenset(
    f"on_{when}" for when in ("train_batch_start", "train_batch_end", "before_zero_grad", "before_backward")
) | {"on_after_backward", "on_before_optimizer_step"}
"""Hooks in which each of several processes has other examples."""

CLASS_NAMES = frozenset(
    f"__{name}__"
    for name in ("module", "qualname", "doc", "annotations", "annotate", "firstlineno", "static_attributes")
) | {"__annotate_func__", "__annotations_cache__", "__parameters__", "__orig_bases__"}
"""Names that Python adds to a class."""

DECLARATIONS = frozenset(
    ("shares_first_task", "needs_labels", "needs_learner", "one_process", "per_process", "predicts_probabilities")
)

INHERITED = {
    "shares_first_task": Cautious(False, OUTSIDE_TRAINING | {"importance"}),
    "needs_labels": Cautious(True, OUTSIDE_TRAINING),
    "one_process": Cautious(True, None, BATCH_HOOKS),
    "per_process": Cautious(True, None, BATCH_HOOKS),
    "predicts_probabilities": Cautious(False, None, frozenset({"predict"})),
}
"""Declarations that a subclass inherits only if it defines nothing that may make them wrong."""


class Strategy(L.Callback):
    """Fine-tuning: each task starts from the weights after the previous one. All other strategies extend this class.

    A strategy declares its properties by class attributes. A subclass inherits them, but inherits those in ``INHERITED`` only if
    it defines no method that may make them wrong. Otherwise the safe value is set, unless the subclass declares the attribute
    itself. A forgotten declaration may therefore cost time or raise an error, but never gives a wrong result.

    Attributes:
        shares_first_task: Whether the strategy trains like fine-tuning until the consolidation of the first task. The runs of a
            sweep then train that task once. A tuple names the options on which the first task depends, in addition to the
            class. False means that it depends on all options.
        needs_labels: Whether the consolidation reads the labels of the examples.
        needs_learner: Whether the strategy changes the loss or the net, and needs ``clbench.learner.Learner`` and a
            TaskSequence.
        one_process: Whether the strategy works in one process only. A run over several processes is then refused.
        kinds: Kinds of targets that the strategy can learn, see ``clbench.data.targets``.
        learns_blurred: Whether the strategy can learn a blurry sequence, whose batches contain examples of several tasks, see
            ``clbench.data.blur``.
        learns_new_classes_alone: Whether a class-incremental task can be trained with its own classes only, see
            ``clbench.data.scenario.Scenario``.
        predicts_probabilities: Whether the scores of ``predict`` are logits. If not, nll and calibration error are null.
        per_process: Whether the strategy sums up, within a task, values that differ between processes. Checkpoints inside a
            task then do not contain them.
        seconds: Time spent on consolidation so far, in seconds.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> finetune = Strategy()
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[finetune]).fit(learner, datamodule=task)
        >>> finetune.cost()
        {'examples': 0, 'bytes': 0}
    """

    shares_first_task: bool | tuple[str, ...] = True
    needs_labels = False
    needs_learner = False
    one_process = False
    per_process = False
    predicts_probabilities = True
    kinds: tuple[str, ...] = KINDS
    learns_blurred = True
    learns_new_classes_alone = True
    seconds = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, cautious in INHERITED.items():
            declares = next(c for c in cls.__mro__ if name in vars(c))
            more = set().union(*(vars(c) for c in cls.__mro__ if c not in declares.__mro__))
            more -= CLASS_NAMES | (DECLARATIONS - {name})
            if more & cautious.harmful if cautious.harmless is None else more - cautious.harmless:
                setattr(cls, name, cautious.value)

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        """Reset all state for a new run on ``sequence``. Called before checkpoints are loaded.

        A strategy that adds parameters adds them to the learner here.
        """
        self.seconds = 0.0

    def check(self, sequence: TaskSequence) -> None:
        """Check that this strategy can run on ``sequence``. Called before training.

        Raises:
            ConfigError: It cannot.
        """
        self.check_kind(sequence)
        self.check_blur(sequence)
        self.check_train_classes(sequence)

    def check_kind(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if the strategy cannot learn the targets of ``sequence``."""
        if sequence.kind not in self.kinds:
            raise StrategyError(
                f"{type(self).__name__} compares classes: expected one label per example, got "
                f"{WHAT[sequence.kind]}. Use strategy=er, or a strategy with a quadratic penalty (ewc, mas, si, l2)"
            )

    def check_train_classes(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if the strategy cannot learn with the classes that compete in training."""
        chosen = sequence.scenario.train_classes
        if chosen == "new" and (sequence.blur or not self.learns_new_classes_alone):
            what = "a blurry sequence" if sequence.blur else f"a step of {type(self).__name__}"
            raise StrategyError(
                f"train_classes={chosen}: expected seen or all, because {what} has examples of several tasks. Use "
                "train_classes=seen"
            )

    def check_blur(self, sequence: TaskSequence) -> None:
        """Raise ConfigError if the strategy cannot learn a blurry sequence, and ``sequence`` is one."""
        if sequence.blur and not self.learns_blurred:
            raise StrategyError(
                f"{type(self).__name__} needs batches of one task: expected blur=0, got {sequence.blur:g}. Use blur=0, "
                "strategy=er, or a strategy with a quadratic penalty (ewc, mas, si, l2)"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the module, the data and the number of processes.

        Raises:
            ConfigError: The strategy needs others.
        """
        if stage != "fit":
            return
        name, task = type(self).__name__, find_task(trainer)
        if task is not None:
            Strategy.check(self, task.sequence)  # that of a subclass may be about options of a run
        if self.needs_learner and not (isinstance(pl_module, Learner) and task is not None):
            raise StrategyError(
                f"{name} changes the loss or the net: expected clbench.learner.Learner and the tasks of a TaskSequence, got "
                f"{type(pl_module).__name__}. Use those, or a strategy with a quadratic penalty (EWC, MAS, SI, L2)"
            )
        if self.one_process and trainer.world_size > 1:
            raise StrategyError(
                f"{name}: expected one process, got {trainer.world_size}. Use trainer.devices=1, or a strategy with a quadratic "
                f"penalty (ewc, mas, si, l2). If {name} is your own and works in several, declare one_process = False"
            )

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        """Return the training data of task ``index``."""
        return sequence[index]

    def predict(self, learner: Learner, batch: Batch) -> Tensor:
        """Return the scores (N, ..., C) by which a batch is evaluated: the outputs of the learner.

        The class with the largest score is predicted. The learner is in evaluation mode, without gradients.
        """
        outputs: Tensor = learner(batch.x, batch.task)
        return outputs

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int | None:
        """Return the smallest replay-only batch this strategy will forward, or None."""
        return None

    def penalty_state(self) -> PenaltyState | None:
        """Return the current quadratic penalty for the penalty monitor and the logs, None if the strategy has none."""
        return None

    def cost(self) -> dict[str, float]:
        """Return the examples used by the last consolidation and the bytes of the kept state, for metrics.json."""
        return {"examples": 0, "bytes": 0}

    def diagnosis(self, trainer: L.Trainer) -> str:
        """Return the likely reason for non-finite weights and the remedy."""
        return "the learning rate may be too large. Lower it"

    def first_task_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return those of the ``options`` on which the first task depends, see ``shares_first_task``.

        Runs of a sweep that agree on these and on everything else train the first task once.

        Args:
            options: Options of the strategy in its configuration.
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
