"""ER-ACE: experience replay in which new classes do not compete with old ones on new examples."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from clbench.data.targets import LABEL
from clbench.errors import StrategyError
from clbench.strategies.er import ER
from clbench.strategies.loss_weights import refuse_compiled


class ERACE(ER):
    """ER with the asymmetric cross-entropy of Caccia et al. 2022 ("New insights on reducing abrupt representation change").

    The cross-entropy of a new example is over the classes in its batch, and that of an example of the memory is over all classes
    seen so far. New examples therefore do not push down the outputs of old classes, which ER does when a task starts. No task
    boundaries are needed. ``ER`` with ``train_classes=new`` is similar: its new examples compete with all classes of the task,
    and so do examples of the task that are drawn from the memory.

    The loss is weighted as in ``ER``. The paper adds the sum over the batch and the sum over the memory, which the default
    divides by the number of examples. The authors' code adds the two means, which is twice the loss of
    ``loss_weights=0.5``, and lets classes not yet seen compete too, if they have a larger label.

    Args:
        options: ``loss_weights`` of ``ER``, and the options of ``RehearsalStrategy``.

    Raises:
        ConfigError: An option is out of range. When training starts, the loss is not the cross-entropy, or is compiled.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> overrides = ["data=split_digits", "scenario=class", "data.tasks=5", "data.validation=0"]
        >>> sequence, learner, _ = build(compose(overrides))
        >>> er_ace = ERACE(memory=2)
        >>> for task in list(sequence)[:2]:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[er_ace]).fit(learner, datamodule=task)
        >>> er_ace.memory.examples["x"].shape  # 2 examples per task
        torch.Size([10, 1, 8, 8])
    """

    kinds = (LABEL,)
    learns_new_classes_alone = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.learner.loss_name != "cross_entropy":
            raise StrategyError(
                f"ERACE with loss={self.learner.loss_name}: expected loss=cross_entropy, in which classes compete. Use that, or "
                "strategy=er"
            )
        refuse_compiled(self.learner, "ERACE: expected a loss that is not compiled, got one")
        self._mean_loss = self.learner.weigh or self.learner.loss
        self.learner.weigh = self._asymmetric

    def _asymmetric(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of outputs (N, C), the new examples first, without the classes that are not in their batch."""
        absent = torch.ones(outputs.shape[1], dtype=torch.bool, device=y.device).index_fill(0, y[: self._number], False)
        is_new = torch.arange(len(y), device=y.device) < self._number
        return self._mean_loss(outputs.masked_fill(is_new[:, None] & absent, float("-inf")), y)
