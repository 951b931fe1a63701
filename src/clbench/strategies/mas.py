"""MAS: importance is the sensitivity of the outputs."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Any, Unpack

import lightning as L
import torch
from torch import nn

from clbench.data import Batches, TaskSequence, find_task, task_of
from clbench.data.sequence import EVALUATION_BATCH
from clbench.errors import StrategyError, expected
from clbench.importance import mas, mas_local
from clbench.importance.batching import count
from clbench.importance.outputs import Outputs
from clbench.params import Params, move_like, snapshot, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength, check_choice, check_flag, check_fraction, check_integer
from clbench.strategies.examples import Data
from clbench.strategies.measured import ImportanceStrategy, MeasurementOptions
from clbench.strategies.quadratic import Quadratic


class MAS(ImportanceStrategy):
    """Memory aware synapses (Aljundi et al. 2018): the penalty lam/2 * sum_i Omega_i (theta_i - theta*_i)^2.

    theta* are the weights after the latest task. Omega is the mean over examples of |d ||outputs||^2 / d theta_i|, summed over
    tasks. It needs no labels, so any data can be used, such as unlabelled examples of the conditions in which the net will be
    used (``data``). The paper has no 1/2 in the penalty, so its lambda is our lam / 2.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        fisher_batch: Group size. 1 uses per-example gradients, as in the paper; b uses the gradient of the mean over b examples,
            as in the authors' demo.
        decay: Factor on the sum so far when a task is added, in [0, 1]. The paper uses 1.
        data: See ``ImportanceStrategy``. In addition, ``seen`` uses the training examples of all tasks so far. Omega is then
            measured again after each task, at the newest weights and with the outputs of each task, and summed. This needs the
            old data. It is the second form in the authors' code (MAS_sequence).
        form: ``global``, or ``local`` (Hebbian), which treats each layer as a function of its own, see ``mas_local``.
        online: Whether to accumulate Omega during the task, without a pass over data at its end. Omega is then the mean over all
            training batches, at the weights right after each batch and in evaluation mode. An example counts as often as it is
            trained on. Early weights count too, as do the steps after the epoch that ``consolidate=best`` selects.
        options: ``samples``, ``outputs``, ``seed``, ``chunk`` and ``every`` of ``ImportanceStrategy``, and ``include`` and
            ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: A value is out of range, or options exclude each other.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> mas, module = MAS(lam=1.0), BoringModel()  # any LightningModule
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[mas]).fit(module)
        >>> {name: f.shape for name, f in mas.penalty.importance.items()}
        {'layer.weight': torch.Size([2, 32]), 'layer.bias': torch.Size([2])}
    """

    shares_first_task = True  # except with online=True, see below
    needs_labels = False
    one_process = False
    per_process = False
    merges_by_name = True

    def __init__(
        self,
        lam: Strength = 1.0,
        fisher_batch: int = 1,
        decay: float = 1.0,
        data: Data = "train",
        form: str = "global",
        online: bool = False,
        **options: Unpack[MeasurementOptions],
    ) -> None:
        self.is_remeasured = isinstance(data, str) and data == "seen"
        super().__init__(lam, data="train" if self.is_remeasured else data, **options)
        self.fisher_batch = check_integer("fisher_batch", fisher_batch, hint="The paper uses 1 (per example).")
        self.decay = check_fraction("decay", decay)
        self.form = check_choice("form", form, ("global", "local"))
        self.online = check_flag("online", online)
        if online:
            self.shares_first_task, self.per_process = False, True
        for option, is_set in (("online", online), ("data=seen", self.is_remeasured)):
            if is_set and self._segment is not None:
                raise StrategyError(
                    f"{self._segment} measures on each segment of a stream once, so {option} has no effect. Leave it out"
                )
        if form == "local" and fisher_batch > 1:
            raise StrategyError(expected("fisher_batch", fisher_batch, "1 with form=local, which is per example"))
        for option, other in (("samples", self.samples is not None), ("data", data != "train")):
            if online and other:
                raise StrategyError(
                    f"online=True measures on every training batch, so {option} has no effect. Leave out {option}"
                )
        self._mean: Params = {}

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        if self.form == "local":
            return mas_local(module, batches, samples=samples, seed=self.seed, outputs=outputs, chunk=self.chunk)
        return mas(
            module,
            batches,
            samples=samples,
            fisher_batch=self.fisher_batch,
            seed=self.seed,
            outputs=outputs,
            chunk=self.chunk,
        )

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        if self.is_remeasured and sequence.blur:
            raise StrategyError(f"data=seen: expected data=train with blur={sequence.blur:g}. Use data=train")

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return quadratic.recentre(old, new, 0.0 if self.is_remeasured else self.decay)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.is_remeasured and (trainer.world_size > 1 or find_task(trainer) is None):
            raise StrategyError(
                "data=seen: expected one process and a task of a clbench sequence as datamodule. Use trainer.devices=1 and "
                "such a task, or data=train"
            )
        if self.online and trainer.ckpt_path is None:
            self._mean, self.examples = {}, 0
        self._mean = move_like(self._mean, trainable(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """With ``online``, add the batch to the running mean: mean += n / N (mean of the batch - mean)."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.online:
            return
        start = perf_counter()
        with self.measurable(pl_module):
            omega = self.measure(pl_module, [batch], self.outputs_of(pl_module), None)
        self.examples += (n := count(batch))
        for name, value in omega.items():
            self._mean.setdefault(name, torch.zeros_like(value)).lerp_(value, n / self.examples)
        self.seconds += perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        during_task = {"mean": snapshot(self._mean), "examples": self.examples} if self._mean else {}
        return {**super().state_dict(), **during_task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._mean, self.examples = state_dict.get("mean", {}), state_dict.get("examples", 0)

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        if self.is_remeasured:
            return self._measure_all_tasks(trainer, pl_module)
        if not self.online:
            return super().importance(trainer, pl_module)
        mean, self._mean = self._mean, {}
        return mean if trainer.world_size == 1 else self.mean_over_processes(trainer, mean)

    def _measure_all_tasks(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        """Return the sum over tasks of Omega at the current weights."""
        task = task_of(trainer)
        sequence, index = task.sequence, task.index
        self.examples = 0
        total: Params = {}
        for part in sequence.examples_of("train", index)[: index + 1]:
            batches = Batches([sequence.on_device(part, trainer.strategy.root_device)], EVALUATION_BATCH)
            omega = self.measure(pl_module, self._counted(batches), self.outputs_of(pl_module), self.samples)
            total = {name: value + total[name] if total else value for name, value in omega.items()}
        if self.samples is not None:
            self.examples = self.samples * (index + 1)
        return total
