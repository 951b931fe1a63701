"""KFAC-EWC: a quadratic penalty with Kronecker factors of the Fisher information instead of its diagonal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Unpack

import lightning as L
from torch import nn
from torch.utils import _pytree

from clbench.errors import StrategyError
from clbench.importance import kronecker_fisher
from clbench.importance.kronecker import KroneckerFisher
from clbench.importance.label_options import LabelArguments
from clbench.importance.matrix_layers import MatrixLayer
from clbench.importance.outputs import Outputs
from clbench.learner import Learner
from clbench.params import Params, named_parameters, widen
from clbench.strategies.argument_checks import Strength, check_choice
from clbench.strategies.consolidation import fitted
from clbench.strategies.ewc import EWC
from clbench.strategies.kronecker_penalty import ACCUMULATE, KroneckerPenalty, Product
from clbench.strategies.measured import ImportanceOptions
from clbench.strategies.quadratic import quadratic


class KroneckerOptions(ImportanceOptions, LabelArguments, total=False):
    """Options of ``EWC`` that ``KFACEWC`` passes on, without ``lam``."""

    fisher: str


class KFACEWC(EWC):
    """EWC with Kronecker factors (Ritter, Botev and Barber 2018, "Online structured Laplace approximations").

    The penalty is lam/2 * sum over layers of sum_t tr(D^T G_t D A_t), with D = [W b] - anchor of a linear or convolutional layer.
    A_t is the second moment of its inputs (patches, for a convolution) followed by a 1, and G_t that of the gradients at its
    outputs. Both are measured on task t, see ``clbench.importance.kronecker_fisher``. A_t kron G_t has the correlations between
    the weights of a layer, which the diagonal Fisher ignores. All other parameters, and layers without Kronecker factors, have
    the penalty of ``OnlineEWC`` with gamma=1. The anchor is the newest weights, as in the recursive Laplace approximation.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        accumulate: How the products of the tasks are added. ``per_task`` keeps the factors of every task, which is exact, while
            memory and the cost of a step grow with the tasks. ``sum_factors`` keeps sum_t A_t and sum_t G_t, whose product is
            divided by the number of tasks. ``nearest`` keeps the product that is nearest in the Frobenius norm to the sum of
            the last product and the new one. These two need the memory of one task.
        options: ``fisher``, ``samples``, ``label_samples`` and the other options of ``EWC``, without ``fisher_batch``, ``grow``
            and ``store``. If ``include`` and ``exclude`` select only the weight or only the bias of a layer, the matching block
            of A_t is used.

    Attributes:
        penalty: The ``KroneckerPenalty``, None before the end of the first task.

    Raises:
        ConfigError: A value is out of range, or an option is not supported. See also ``ImportanceStrategy``.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> strategy, module = KFACEWC(lam=100.0), BoringModel()  # any LightningModule
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[strategy]).fit(module)
        >>> [(p.inputs.shape, p.gradients.shape) for products in strategy.penalty.products.values() for p in products]
        [(torch.Size([33, 33]), torch.Size([2, 2]))]
    """

    shares_first_task = True
    needs_labels = False
    one_process = False
    per_process = False
    penalty_type = KroneckerPenalty
    penalty: KroneckerPenalty | None  # type: ignore[assignment]
    previous: KroneckerPenalty | None  # type: ignore[assignment]

    def __init__(
        self,
        lam: Strength = 1e3,
        accumulate: str = "per_task",
        **options: Unpack[KroneckerOptions],
    ) -> None:
        super().__init__(lam, **options)
        self.accumulate = check_choice("accumulate", accumulate, list(ACCUMULATE))
        for option, value, none in (
            ("fisher_batch", self.fisher_batch, 1),
            ("grow", self.grow, None),
            ("store", self.store, None),
        ):
            if value != none:
                raise StrategyError(
                    f"{option}={value}: expected {none}, because a penalty with Kronecker factors does not support it. Leave it "
                    "out, or use EWC"
                )
        self._live: Params = {}

    def measure(  # type: ignore[override]
        self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None
    ) -> KroneckerFisher:
        is_own = self.outputs is None and isinstance(module, Learner)  # whose outputs have their classes last
        labels = replace(self.labels, class_dim=-1) if is_own else self.labels
        return kronecker_fisher(
            module, batches, samples=samples, seed=self.seed, outputs=outputs, chunk=self.chunk, **asdict(labels)
        )

    def mean_over_processes(self, trainer: L.Trainer, importance: KroneckerFisher) -> KroneckerFisher:  # type: ignore[override]
        leaves, structure = _pytree.tree_flatten(importance)
        means = super().mean_over_processes(trainer, {str(i): leaf for i, leaf in enumerate(leaves)})
        return _pytree.tree_unflatten(list(means.values()), structure)  # type: ignore[no-any-return]

    def merge(self, old: KroneckerPenalty, new: KroneckerPenalty) -> KroneckerPenalty:  # type: ignore[override]
        return old.merge(new, ACCUMULATE[self.accumulate])

    def begin(self, module: nn.Module, resumed: bool = False) -> None:
        super().begin(module, resumed)
        self._live = named_parameters(module)

    def _half_gradient(self, params: Params) -> Params:
        """Return the gradient of q / 2 for some parameters. That of a weight depends on its bias too, and the reverse."""
        assert self.penalty is not None
        layers = [layer for layer in self.penalty.products if any(name in params for name in layer.names)]
        partners = {name: self._live[name] for layer in layers for name in layer.names if name in self._live}
        halves = self.penalty.half_gradient({**partners, **params})
        return {name: halves[name] for name in params if name in halves}

    def _fitted(self, q: KroneckerPenalty, module: nn.Module) -> KroneckerPenalty:  # type: ignore[override]
        names, params = self._selected_names(module), named_parameters(module)
        anchor = fitted(quadratic(q.anchor, q.anchor), params, self.include, self.exclude, names, grow=False).anchor
        return q.restricted(anchor).at(anchor)

    def _selection(self, importance: KroneckerFisher, params: Params) -> KroneckerFisher:  # type: ignore[override]
        return importance

    def _merged(  # type: ignore[override]
        self, old: list[KroneckerPenalty], importance: KroneckerFisher, params: Params
    ) -> KroneckerPenalty:
        anchor = {name: widen(p.detach()).clone() for name, p in params.items()}
        products: dict[MatrixLayer, tuple[Product, ...]]
        products = {layer: (Product(*pair),) for layer, pair in importance.factors.items()}
        new = KroneckerPenalty(importance.diagonal, anchor, products).restricted(anchor)
        return self.merge(old.pop(), new) if old else new
