"""DER and DER++: replay of outputs."""

from __future__ import annotations

import math
from typing import Any, Unpack

import lightning as L
import torch
from torch import Tensor, nn

from clbench.data import Batch
from clbench.learner import learner_of
from clbench.strategies.argument_checks import check_strength
from clbench.strategies.learner_strategy import Features
from clbench.strategies.rehearsal import RehearsalOptions, RehearsalStrategy


class DEROptions(RehearsalOptions, total=False):
    """Options of DER, which DER++ passes on; their meaning stands at ``DER``."""

    alpha: float


class DER(RehearsalStrategy):
    """Dark experience replay (Buzzega et al. 2020): old examples keep the outputs they had when they were remembered.

    loss + alpha * mean over drawn examples of ||z(x) - z_kept||^2, with z the raw outputs of the example's own head, or of
    the one output layer: all its columns, those of classes to come too, so that new classes cannot push themselves in
    front on old examples. Kept outputs are those of the training pass, before its step, and are never refreshed. The
    authors' code averages over the C outputs as well, so their alpha is C times ours.

    Args:
        alpha: strength, >= 0.
        options: ``memory``, ``replay``, ``buffer``, ``seed``, see ``RehearsalStrategy``.

    Raises:
        ConfigError: ``alpha`` negative or not finite.
    """

    per_process = False

    def __init__(self, alpha: float = 0.1, **options: Unpack[RehearsalOptions]) -> None:
        super().__init__(**options)
        self.alpha = check_strength("alpha", alpha)
        self._fresh: Tensor

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.terms["dark"] = self._dark
        if self.sequence.scenario.name == "class":
            self.features = Features(learner.net)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.remember(batch, outputs=self._fresh)

    def _dark(self, batch: Batch, outputs: Tensor) -> Tensor:
        self._fresh = self._kept_form(outputs)
        recalled = self.recall(len(batch.y))
        if recalled is None:
            return outputs.new_zeros(())
        old, examples = recalled
        newest = len(self.sequence) - 1  # in whose context every class competes
        z = self.learner.net(old.x, old.task if self.features is None else newest)
        return self.alpha * squared_distance(z, examples["outputs"])

    def _kept_form(self, outputs: Tensor) -> Tensor:
        """Outputs (N, C) of the batch -> (N, W), as wide as any task's, nan where there is no output."""
        sequence = self.sequence
        if self.features is not None:
            head: nn.Module = self.learner.net.head  # type: ignore[assignment]
            outputs = head(self.features.last, len(sequence) - 1)
            return outputs.detach().float()
        width = max(stop - start for start, stop in sequence.scenario.slices(sequence.sizes))
        return nn.functional.pad(outputs.detach().float(), (0, width - outputs.shape[1]), value=math.nan)


class DERpp(DER):
    """DER++ (Buzzega et al. 2020): DER, and beta times the loss on the labels of another draw.

    Args:
        beta: strength, >= 0.
        options: ``alpha``, ``memory``, ``replay``, ``buffer``, ``seed``, see ``DER``.

    Raises:
        ConfigError: ``alpha`` or ``beta`` negative or not finite.
    """

    def __init__(self, beta: float = 0.5, **options: Unpack[DEROptions]) -> None:
        super().__init__(**options)
        self.beta = check_strength("beta", beta)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.terms["replay"] = self._replay

    def _replay(self, batch: Batch, outputs: Tensor) -> Tensor:
        recalled = self.recall(len(batch.y))
        if recalled is None:
            return outputs.new_zeros(())
        old, _ = recalled
        return self.beta * self.learner.loss(self.learner.net(old.x, old.task), old.y)


def squared_distance(z: Tensor, kept: Tensor) -> Tensor:
    """Mean over examples of ||z - kept||^2 over the outputs that were kept; z (N, C), kept (N, W), nan where none was."""
    kept = kept[:, : z.shape[1]]
    return torch.where(kept.isnan(), 0.0, z - kept).square().sum(1).mean()
