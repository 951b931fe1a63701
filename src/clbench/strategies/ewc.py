"""EWC and Online EWC: importance is the diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from torch import nn

from clbench.data import TaskSequence
from clbench.errors import StrategyError
from clbench.importance import check_options, fisher
from clbench.params import Params
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import check_fraction
from clbench.strategies.measured import ImportanceOptions, ImportanceStrategy, Outputs
from clbench.strategies.quadratic import Quadratic


class FisherOptions(ImportanceOptions, total=False):
    """Options of EWC but for ``lam``, which Online EWC passes on; their meaning stands at ``EWC``."""

    fisher: str
    fisher_batch: int
    label_samples: int
    loss: str


class EWC(ImportanceStrategy):
    """Elastic weight consolidation (Kirkpatrick et al. 2017): one Fisher-weighted penalty per task.

    lam/2 * sum_t sum_i F_t,i (theta_i - theta*_t,i)^2, kept in two tensors per parameter (``quadratic.add``). One object goes
    through all tasks and keeps the penalty of earlier ones.

    Args:
        lam: strength, >= 0. The Laplace approximation has lam = N_old with a loss summed over the task, and N_old / N_new
            with a mean loss (N examples of the old and the new task).
        fisher: labels of the Fisher: ``exact`` (expectation under the model), ``sample``, ``empirical``, ``predicted``.
            ``empirical`` reads labels and cannot be combined with ``data="test"``.
        fisher_batch: 1 = per example; b = squared gradient of the mean over b, as much public code has it.
        label_samples: labels per example with ``fisher="sample"``.
        loss: ``cross_entropy``, ``binary_cross_entropy`` (one logit) or ``mse``.
        options: ``samples``, ``outputs``, ``seed``, ``data``, ``chunk``, see ``ImportanceStrategy``; ``include``, ``exclude``,
            see ``QuadraticStrategy``.

    Raises:
        ConfigError: a value outside its range.
    """

    shares_first_task = True
    needs_labels = False

    def __init__(
        self,
        lam: float = 1e3,
        fisher: str = "exact",
        fisher_batch: int = 1,
        label_samples: int = 1,
        loss: str = "cross_entropy",
        **options: Unpack[ImportanceOptions],
    ) -> None:
        try:
            check_options(labels=fisher, loss=loss, fisher_batch=fisher_batch, label_samples=label_samples)
        except ValueError as error:
            raise StrategyError(str(error).replace("labels=", "fisher=")) from error
        if fisher == "empirical":
            if isinstance(data := options.get("data"), str) and data == "test":
                raise StrategyError(
                    "data=test with fisher=empirical reads the labels of the test data. Use fisher=exact"
                )
            self.needs_labels = True
        super().__init__(lam, **options)
        self.fisher = fisher
        self.fisher_batch = fisher_batch
        self.label_samples = label_samples
        self.loss = loss

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        competing = [stop - start for start, stop in sequence.scenario.slices(sequence.sizes)]
        if self.loss == "cross_entropy" and 1 in competing:
            raise StrategyError(
                f"task {competing.index(1) + 1} has a single class, so its loss and its Fisher are zero. Begin with at least two "
                "(data.split.first_task=2), or give each task more (data.split.classes_per_task)"
            )

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        return fisher(
            module,
            batches,
            labels=self.fisher,
            samples=samples,
            fisher_batch=self.fisher_batch,
            label_samples=self.label_samples,
            loss=self.loss,
            seed=self.seed,
            outputs=outputs,
            chunk=self.chunk,
        )


class OnlineEWC(EWC):
    """Online EWC (Schwarz et al. 2018): one penalty, lam/2 * sum_i gamma F_i (theta_i - theta*_i)^2 at the newest anchor.

    F = gamma * F_old + F_new. gamma = 1 is the recursive Laplace approximation (Huszar 2018); gamma = 0 penalises
    nothing, because gamma multiplies the stored Fisher in the penalty too (Schwarz et al. 2018, eq. 9).

    Args:
        lam: strength, >= 0.
        gamma: decay of the importance of earlier tasks, in [0, 1].
        options: ``fisher``, ``samples``, ``fisher_batch`` and the others of ``EWC``.
    """

    shares_first_task = True
    needs_labels = False
    merges_by_name = True

    def __init__(self, lam: float = 1e3, gamma: float = 1.0, **options: Unpack[FisherOptions]) -> None:
        super().__init__(lam, **options)
        self.gamma = check_fraction("gamma", gamma)

    @property
    def strength(self) -> float:
        return self.lam * self.gamma

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return quadratic.recentre(old, new, self.gamma)
