"""EWC-DR: EWC whose importance is measured with negated logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from clbench.data import Batch, find_task
from clbench.data.targets import LABEL
from clbench.importance.outputs import Outputs
from clbench.learner import Learner
from clbench.params import Params
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength, check_choice, check_positive
from clbench.strategies.ewc import EWC
from clbench.strategies.measured import ImportanceOptions
from clbench.strategies.quadratic import Quadratic


class EWCDR(EWC):
    """EWC-DR (Liu and Chang, CVPR 2026, arXiv 2603.18596): the penalty lam/2 * sum_i Omega_i (theta_i - theta*_i)^2.

    theta* are the weights after the latest task. Omega is the mean over examples of (d CE(-z, y) / d theta_i)^2, with the true
    label y and the negated logits -z of all classes seen so far, whatever ``train_classes`` is. Where the net is certain of the
    right label, the Fisher information vanishes, and Omega is large.

    By default Omega is per example and is summed over tasks, so lam compares with that of ``OnlineEWC``. The authors' code
    differs in four ways. Each is an option: ``fisher_batch=128``, ``max_importance=1e-4``, ``combine="mean"``, and
    ``train_classes=new`` of the Learner's scenario. It also measures in training mode on augmented examples, which we do not.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        fisher_batch: Group size. 1 squares per-example gradients; b squares the gradient of the mean over b examples.
        max_importance: Largest importance of a weight for one task, > 0. None sets no limit.
        combine: How the tasks are combined. ``sum`` adds their importances. ``mean`` is the running mean of ``running_mean``,
            in which a task counts by its number of classes, and equally without a clbench sequence or with ``every``.
        options: ``samples``, ``outputs``, ``seed``, ``data``, ``chunk`` and ``every`` of ``ImportanceStrategy``, and ``include``
            and ``exclude`` of ``QuadraticStrategy``. ``outputs`` replaces the choice of classes too.

    Raises:
        ConfigError: A value is out of range. See also ``ImportanceStrategy``.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> strategy, module = EWCDR(lam=1.0, max_importance=1e-4), BoringModel()  # any LightningModule
        >>> data = torch.utils.data.TensorDataset(torch.randn(8, 32), torch.randint(2, (8,)))
        >>> strategy.consolidate(module, torch.utils.data.DataLoader(data, batch_size=4))
        >>> bool(strategy.penalty.importance["layer.weight"].max() <= 1e-4)
        True
    """

    shares_first_task = True
    needs_labels = True
    merges_by_name = True
    kinds = (LABEL,)

    def __init__(
        self,
        lam: Strength = 10.0,
        fisher_batch: int = 1,
        max_importance: float | None = None,
        combine: str = "sum",
        **options: Unpack[ImportanceOptions],
    ) -> None:
        super().__init__(lam, fisher="reversed", fisher_batch=fisher_batch, **options)
        self.max_importance = torch.inf if max_importance is None else check_positive("max_importance", max_importance)
        self.combine = check_choice("combine", combine, ("sum", "mean"))
        self._share = 0.0  # of the classes so far that belong to earlier tasks

    def default_outputs(self, module: nn.Module) -> Outputs:
        return outputs_of_seen_classes if isinstance(module, Learner) else super().default_outputs(module)

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        if self.combine == "sum":
            return quadratic.recentre(old, new, 1.0)
        both = {
            n: running_mean(old.importance[n], f, self._share) for n, f in new.importance.items() if n in old.importance
        }
        return Quadratic(old.importance | new.importance | both, old.anchor | new.anchor, new.constant)

    def _consolidate(self, module: nn.Module, measure: Callable[[], Params], replace: bool = False) -> None:
        trainer = getattr(module, "_trainer", None)
        task = None if trainer is None or self._segment is not None else find_task(trainer)
        if task is None:
            before, total = self.tasks - replace, self.tasks - replace + 1
        else:
            before, total = (sum(task.sequence.sizes[: task.index + more]) for more in (0, 1))
        self._share = before / total

        def limited() -> Params:
            return {name: f.clamp_(max=self.max_importance) for name, f in measure().items()}

        super()._consolidate(module, limited, replace)


def outputs_of_seen_classes(learner: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the outputs (N, C) of all classes that compete at test time, and the labels."""
    return learner(batch.x, batch.task), batch.y


def running_mean(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Return share * old + (1 - share) * new, but ``new`` in rows without importance so far, such as outputs of new classes."""
    is_old = old.flatten(1).any(1) if old.dim() > 1 else old != 0
    return torch.where(is_old.reshape(is_old.shape + (1,) * (old.dim() - 1)), share * old + (1 - share) * new, new)
