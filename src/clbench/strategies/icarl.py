"""iCaRL: incremental classifier and representation learning."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import accumulate
from math import prod
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from clbench.data import Batch, Task, TaskSequence, task_of
from clbench.errors import StrategyError
from clbench.importance import preserve_state
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.params import snapshot
from clbench.strategies.argument_checks import check_choice, check_flag, check_integer, check_integer_or_none
from clbench.strategies.exemplars import herded
from clbench.strategies.learner_strategy import Features
from clbench.strategies.nearest_mean import NearestMeanStrategy, features_of
from clbench.strategies.rehearsal import class_numbers


class ICaRL(NearestMeanStrategy):
    """Incremental classifier and representation learning (Rebuffi et al. 2017, "iCaRL").

    A task is trained on its examples mixed with the exemplars of the earlier classes (algorithm 3), with the loss

        mean over examples of  - sum_c [ q_c log s(z_c) + (1 - q_c) log(1 - s(z_c)) ],    s the sigmoid,

    summed over the classes c so far. For a new class, q_c is 1 if c is the label, else 0. For an earlier class, q_c is the
    sigmoid of its output before the task, in evaluation mode, for exemplars as well. When the task ends, each class has floor(K
    / classes so far) exemplars: new classes choose theirs by herding (algorithm 4), and earlier classes drop their last ones
    (algorithm 5). The class with the nearest mean of its exemplars is predicted (algorithm 1, see ``NearestMeanStrategy``).

    Exemplars are kept as indices of training examples and are augmented as these are. In the task-incremental scenario the loss
    is over the outputs of all tasks so far, and the classes of the task compete in a prediction.

    The authors' code takes the mean over classes instead of the sum (``class_reduction="mean"``), trains the outputs of later
    classes as well (``train_classes="all"``), and does not normalise the averages of herding (``normalize_averages=False``). Two
    more differences are not included: its class means are also over mirrored images, and an example that herding chooses again
    counts again in the sum of the exemplars.

    Args:
        memory: Examples per task, at least 1: K is ``memory`` times the number of tasks.
        memory_total: K, the number of exemplars of all classes together, which replaces ``memory``. None uses ``memory``. The
            paper uses 2000 for 100 classes.
        class_reduction: ``sum`` over the classes so far in the loss, or ``mean``. With the mean, the learning rate must be larger
            by the number of classes.
        normalize_averages: Whether herding normalises averages of features to length 1. The class means of predictions always
            have length 1.

    Raises:
        ConfigError: A number is below its minimum, K is less than the number of classes, the scenario is domain-incremental, in
            which no task has new classes, or there is not one label per example. When a fit starts: the loss is not the cross
            entropy, the learner is compiled, the net is not a body with a head, or the task does not contain the exemplars.

    Attributes:
        exemplars: Indices of the exemplars among the training examples of their task, for each class of each task so far.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> icarl = ICaRL(memory_total=5)
        >>> for index in range(2):
        ...     task = icarl.training_data(sequence, index)
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[icarl]).fit(learner, datamodule=task)
        >>> [len(each) for classes in icarl.exemplars for each in classes]  # 2 classes in each of 2 tasks
        [1, 1, 1, 1]
    """

    learns_new_classes_alone = False

    def __init__(
        self,
        memory: int = 50,
        memory_total: int | None = None,
        class_reduction: str = "sum",
        normalize_averages: bool = True,
    ) -> None:
        self.each = check_integer("memory", memory)
        self.total = check_integer_or_none("memory_total", memory_total)
        self.class_reduction = check_choice("class_reduction", class_reduction, ("sum", "mean"))
        self.normalize_averages = check_flag("normalize_averages", normalize_averages)
        self.exemplars: list[list[Tensor]] = []
        self.old: nn.Module | None = None
        self._loaded: dict[str, Any] = {}
        self._batch: Batch

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.exemplars, self.old, self.means = [], None, None

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        if sequence.scenario.name == "domain":
            raise StrategyError(
                "iCaRL learns new classes: expected scenario=class or task, got domain, in which no task has new classes. Use "
                "strategy=nearest_mean, or scenario=class"
            )
        option = f"memory={self.each}" if self.total is None else f"memory_total={self.total}"
        if (k := self._k(sequence)) < sum(sequence.sizes):
            raise StrategyError(
                f"{option}: expected at least one exemplar for each of {sum(sequence.sizes)} classes, got {k}. Use "
                f"memory_total={sum(sequence.sizes)} or more"
            )

    def _k(self, sequence: TaskSequence) -> int:
        return self.total or self.each * len(sequence)

    def training_data(self, sequence: TaskSequence, index: int) -> Task:
        """Return the training data of task ``index``, mixed with the exemplars of earlier tasks."""
        return sequence.rehearsing(index, [torch.cat(classes) for classes in self.exemplars[:index]])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        learner, task = learner_of(pl_module), task_of(trainer)
        self.check(task.sequence)
        if self._sequence is not task.sequence:
            loaded, self._loaded = self._loaded, {}
            self.attach(learner, task.sequence)
            self.load_state_dict(loaded)
        if learner.loss_name != "cross_entropy" or learner.compiled:
            raise StrategyError(
                f"iCaRL has a loss of its own: expected loss=cross_entropy and compile=False, got {learner.loss_name} and "
                f"{learner.compiled}. Use these"
            )
        if task.examples != self.training_data(task.sequence, task.index).examples:
            raise StrategyError(
                f"iCaRL trains on new examples and exemplars, but this task has only {task.examples} examples. Fit "
                f"strategy.training_data(sequence, {task.index}), not sequence[{task.index}]"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner, task = learner_of(pl_module), task_of(trainer)
        self.learner, self._index = learner, task.index
        self._starts = torch.tensor([0, *accumulate(self.sequence.sizes)], device=learner.device)
        self.old = None
        if task.index:
            self.old = deepcopy(learner.net).eval().requires_grad_(False)
            if "old" in self._loaded:  # the task is resumed
                self.old.load_state_dict(self._loaded.pop("old"))
        self.features = Features(learner.net)
        learner.extend, learner.weigh = self._see, self._loss

    def _see(self, batch: Batch) -> Batch:
        self._batch = batch
        return batch

    def _loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        q, net = None, self.learner.net
        assert isinstance(net, Net) and self.features is not None
        if isinstance(self.old, Net):
            with torch.no_grad():
                q = self._outputs(self.old.head, self.old.body(self._batch.x), self._index - 1).sigmoid()
        if self.sequence.scenario.name == "task":
            outputs, y = self._outputs(net.head, self.features.last, self._index), y + self._starts[self._batch.task]
        loss = icarl_loss(outputs, y, q)
        return loss / outputs.shape[1] if self.class_reduction == "mean" else loss

    def _outputs(self, head: nn.Module, features: Tensor, newest: int) -> Tensor:
        """Return the outputs of all classes up to task ``newest`` (N, C)."""
        contexts = range(newest + 1) if self.sequence.scenario.name == "task" else [newest]
        return torch.cat([head(features, context) for context in contexts], 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the exemplars of the new classes, and drop exemplars of the earlier ones."""
        start, learner, task = perf_counter(), learner_of(pl_module), self.sequence[self._index]
        m = self._k(self.sequence) // sum(self.sequence.sizes[: self._index + 1])
        with preserve_state(learner), torch.no_grad():
            features = features_of(learner, task.importance_dataloader())
            new = herded(features, task.labels, m, self.normalize_averages)
        self.exemplars = [[each[:m] for each in classes] for classes in self.exemplars[: self._index]] + [new]
        self.seconds += perf_counter() - start
        super().on_train_end(trainer, pl_module)

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, classes in enumerate(self.exemplars):
            for batch in self.sequence[index].examples_at(torch.cat(classes)):
                yield batch.x, class_numbers(self.sequence, batch.y, index)

    def state_dict(self) -> dict[str, Any]:
        """Return the exemplars, and during a task the net before it."""
        during_task = {} if self.old is None or self.features is None else {"old": snapshot(self.old.state_dict())}
        return {"exemplars": [list(classes) for classes in self.exemplars], **during_task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.exemplars = [list(classes) for classes in state_dict.get("exemplars", [])]
        self._loaded = dict(state_dict)

    def cost(self) -> dict[str, float]:
        """Return the bytes of the stored values of the exemplars."""
        number = sum(len(each) for classes in self.exemplars for each in classes)
        source = self._sequence and self.sequence.definitions[0].source.train
        return {"examples": 0, "bytes": number * prod(source.shape) * source.dtype.itemsize if source else 0}


def icarl_loss(z: Tensor, y: Tensor, q: Tensor | None) -> Tensor:
    """Return the mean over examples of the binary cross-entropies of all classes, summed.

    Args:
        z: Outputs (N, C).
        y: Labels (N,), int64.
        q: Targets of the first S classes (N, S), in [0, 1]. None if no class is old.
    """
    targets = one_hot(y, z.shape[1]).to(z.dtype)
    if q is not None:
        targets[:, : q.shape[1]] = q
    return binary_cross_entropy_with_logits(z, targets, reduction="sum") / len(y)
