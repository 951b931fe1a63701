"""EWC and Online EWC: importance is the diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Unpack

from torch import nn

from clbench.data import TaskSequence
from clbench.data.targets import LABEL
from clbench.errors import StrategyError
from clbench.importance import check_options, fisher
from clbench.importance.label_options import LabelArguments, Loss
from clbench.importance.outputs import Outputs, returned_outputs
from clbench.learner import Learner
from clbench.params import Params
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength, check_fraction
from clbench.strategies.measured import ImportanceOptions, ImportanceStrategy
from clbench.strategies.quadratic import Quadratic


class FisherOptions(ImportanceOptions, LabelArguments, total=False):
    """Options of ``EWC`` that ``OnlineEWC`` passes on, without ``lam``."""

    fisher: str
    fisher_batch: int


class EWC(ImportanceStrategy):
    """Elastic weight consolidation (Kirkpatrick et al. 2017): one penalty per task, weighted by the Fisher information.

    The penalty is lam/2 * sum_t sum_i F_t,i (theta_i - theta*_t,i)^2, stored in two tensors per parameter (``quadratic.add``).
    Use one object for all tasks, because it keeps the penalty of the earlier ones.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task. In the Laplace approximation lam = N_old if the loss is
            summed over the task, and N_old / N_new if it is averaged, for N_old and N_new examples of the old and the new task.
        fisher: Labels of the Fisher: ``exact`` (expectation under the model), ``sample``, ``empirical``, ``predicted``,
            ``weighted`` or ``reversed``, see ``clbench.importance.fisher``. ``empirical``, ``weighted`` and ``reversed`` need
            labels and cannot be combined with ``data="test"``.
        fisher_batch: Group size. 1 squares per-example gradients; b squares the gradient of the mean over b examples, as much
            published code does.
        label_samples: Labels per example with ``fisher="sample"``.
        loss: ``cross_entropy``, ``binary_cross_entropy`` (independent labels 0 or 1) or ``mse``. With ``fisher="empirical"``
            also a function of outputs and targets that returns the loss of each example.
        reduction, ignore_index, class_dim: See ``clbench.importance.fisher``. For outputs with positions (tokens, pixels).
        options: ``samples``, ``outputs``, ``seed``, ``data``, ``chunk`` and ``every`` of ``ImportanceStrategy``, and ``include``
            and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: A value is out of range. See also ``ImportanceStrategy``.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> ewc, module = EWC(lam=100.0), BoringModel()  # any LightningModule
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[ewc]).fit(module)
        >>> {name: f.shape for name, f in ewc.penalty.importance.items()}
        {'layer.weight': torch.Size([2, 32]), 'layer.bias': torch.Size([2])}
    """

    shares_first_task: bool | tuple[str, ...] = True
    needs_labels = False

    def __init__(
        self,
        lam: Strength = 1e3,
        fisher: str = "exact",
        fisher_batch: int = 1,
        label_samples: int = 1,
        loss: Loss = "cross_entropy",
        reduction: str = "sum",
        ignore_index: int = -100,
        class_dim: int | None = None,
        **options: Unpack[ImportanceOptions],
    ) -> None:
        try:
            self.labels = check_options(
                labels=fisher,
                loss=loss,
                fisher_batch=fisher_batch,
                label_samples=label_samples,
                reduction=reduction,
                ignore_index=ignore_index,
                class_dim=class_dim,
            )
        except ValueError as error:
            raise StrategyError(str(error).replace("labels=", "fisher=")) from error
        if self.labels.reads_labels:
            if isinstance(data := options.get("data"), str) and data == "test" and not type(self).needs_labels:
                raise StrategyError(
                    f"data=test: fisher={fisher} would read the labels of the test data. Use fisher=exact"
                )
            self.needs_labels = True
        super().__init__(lam, **options)
        self.fisher_batch = fisher_batch

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        competing = [stop - start for start, stop in sequence.scenario.slices(sequence.sizes)]
        if self.labels.loss == "cross_entropy" and sequence.kind == LABEL and 1 in competing:
            raise StrategyError(
                f"task {competing.index(1) + 1} has a single class, so its loss and its Fisher are zero. Use at least two, "
                "by data.split.first_task=2 or data.split.classes_per_task"
            )

    def check_module(self, module: nn.Module, batch: Any) -> None:
        loss = self.labels.loss
        if isinstance(module, Learner) and self.outputs is None and isinstance(loss, str) and loss != module.loss_name:
            raise StrategyError(f"loss={loss}: expected {module.loss_name}, the loss of the Learner. Use the same loss")
        super().check_module(module, batch)

    def columns(self, outputs: int) -> int:
        return self.labels.columns(positions=1, classes=outputs)

    def default_outputs(self, module: nn.Module) -> Outputs:
        is_whole = callable(self.labels.loss) and not isinstance(module, Learner)
        return returned_outputs if is_whole else super().default_outputs(module)

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        is_own = self.outputs is None and isinstance(module, Learner)  # whose outputs have their classes last
        labels = replace(self.labels, class_dim=-1) if is_own else self.labels
        return fisher(
            module,
            batches,
            samples=samples,
            fisher_batch=self.fisher_batch,
            seed=self.seed,
            outputs=outputs,
            chunk=self.chunk,
            **asdict(labels),
        )


class OnlineEWC(EWC):
    """Online EWC (Schwarz et al. 2018): one penalty, centred at the weights after the latest task.

    The penalty is lam/2 * sum_i gamma F_i (theta_i - theta*_i)^2, and a new task sets F = gamma * F_old + F_new. gamma = 1 is the
    recursive Laplace approximation (Huszar 2018). gamma = 0 disables the penalty, because gamma multiplies the stored Fisher in
    the penalty too (Schwarz et al. 2018, eq. 9).

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        gamma: Decay of the importance of earlier tasks, in [0, 1].
        options: ``fisher``, ``samples``, ``fisher_batch`` and the other options of ``EWC``.

    Raises:
        ConfigError: A value is out of range. See also ``ImportanceStrategy``.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> online, module = OnlineEWC(lam=100.0, gamma=0.9), BoringModel()  # any LightningModule
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[online]).fit(module)
        >>> online.strength  # lam * gamma
        90.0
    """

    shares_first_task = True
    needs_labels = False
    merges_by_name = True

    def __init__(self, lam: Strength = 1e3, gamma: float = 1.0, **options: Unpack[FisherOptions]) -> None:
        super().__init__(lam, **options)
        self.gamma = check_fraction("gamma", gamma)

    @property
    def strength(self) -> float:
        return self.lam_now * self.gamma

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return quadratic.recentre(old, new, self.gamma)
