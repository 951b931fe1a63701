"""QuadraticStrategy: a quadratic penalty, applied as its exact gradient. Base of EWC, Online EWC, MAS, SI and L2.

The gradient lam * F (theta - a) is added in ``on_before_optimizer_step``: after unscaling, before clipping, once per
optimiser step. Accumulation, clipping, mixed precision, manual optimisation and DDP therefore need no special case.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any, TypedDict

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from clbench.data import TaskSequence
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import Params, move_like, size_in_bytes, snapshot, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import check_strength
from clbench.strategies.base import Strategy
from clbench.strategies.patterns import Patterns, selected
from clbench.strategies.penalty_state import PenaltyState, empty, sgd_bound
from clbench.strategies.quadratic import Quadratic


class QuadraticOptions(TypedDict, total=False):
    """Options of every quadratic strategy that a subclass passes on, explained at ``QuadraticStrategy``."""

    include: Patterns
    exclude: Patterns


class QuadraticStrategy(Strategy):
    """The penalty lam/2 * sum_i importance_i (theta_i - anchor_i)^2, added to the gradients of the optimiser.

    A subclass computes the importance of a task (``importance``) and merges it with that of earlier tasks (``merge``).

    Args:
        lam: Strength of the penalty, >= 0. A measured importance is a mean over examples, so lam does not depend on their number.
        include, exclude: Patterns on parameter names, see ``selected``. A parameter that is not selected has no importance and
            no anchor, and is not penalised.

    Attributes:
        penalty: Importance and anchor, None before the end of the first task.

    Raises:
        ConfigError: ``lam`` is negative or not finite. When training starts, a pattern matches no parameter.

    Example:
        >>> class Uniform(QuadraticStrategy):
        ...     def importance(self, trainer, module):
        ...         return {name: torch.ones_like(p) for name, p in module.named_parameters()}
        >>> strategy = Uniform(lam=2.0)
        >>> strategy.value(nn.Linear(3, 2))  # no task was learned yet
        tensor(0.)
    """

    shares_first_task: bool | tuple[str, ...] = True  # no hook changes anything without a penalty
    needs_labels = False
    one_process = False
    per_process = False

    def __init__(self, lam: float, include: Patterns = None, exclude: Patterns = None) -> None:
        self.lam = check_strength("lam", lam)
        self.include = include
        self.exclude = exclude
        self.penalty: Quadratic | None = None
        self.seconds = 0.0
        self.examples = 0
        self._names: dict[int, str] = {}
        self._versions_at_anchor: dict[str, int] = {}

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        """Return the importance of every trainable parameter for the task that has just been learned."""
        raise TypeError(f"{type(self).__name__} does not define importance(trainer, pl_module)")

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        """Return the penalty after one more task. By default it is the sum of one penalty per task, in constant memory."""
        return quadratic.add(old, new)

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.penalty, self.examples = None, 0

    @property
    def strength(self) -> float:
        """The factor of q/2 in the loss, see ``PenaltyState``."""
        return self.lam

    def penalty_state(self) -> PenaltyState:
        return PenaltyState(self.penalty or empty(), self.strength, self.lam)

    def value(self, pl_module: nn.Module) -> Tensor:
        """Return the penalty at the current weights, a scalar."""
        return self.penalty_state().value(trainable(pl_module))

    # --- Lightning ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        plugin = trainer.precision_plugin
        fused = [o for o in trainer.optimizers if getattr(o, "_step_supports_amp_scaling", False)]
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and fused:
            raise StrategyError(
                f"{type(fused[0]).__name__} is fused under 16-mixed precision, so gradients are still scaled when the penalty "
                "is added. Use fused=False or precision=bf16-mixed"
            )
        if any(group.get("line_search_fn") for optimizer in trainer.optimizers for group in optimizer.param_groups):
            raise StrategyError(
                "line_search_fn compares values of the loss, which do not include the penalty. Use line_search_fn=None, or "
                "another optimizer"
            )
        for name, part in pl_module.named_modules():
            if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
                raise StrategyError(
                    f"{name} has sparse gradients, to which a penalty cannot be added. Use sparse=False"
                )
        selected(pl_module, self.include, self.exclude)  # report a pattern that matches nothing before training
        params = dict(pl_module.named_parameters())  # a parameter may be unfrozen during the task
        self._names = {id(p): name for name, p in params.items()}
        self._versions_at_anchor = {}
        if self.penalty is not None:
            q = self.penalty
            for name, f in q.importance.items():
                if name in params and params[name].shape != f.shape:
                    raise StrategyError(
                        f"{name}: expected shape {tuple(f.shape)}, as when its importance was measured, got "
                        f"{tuple(params[name].shape)}. Give a new head another name, or exclude it with exclude=[...]"
                    )
            self.penalty = Quadratic(move_like(q.importance, params), move_like(q.anchor, params), q.constant)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self.penalty is None or self.strength == 0:
            return
        params = self._penalised(p for group in optimizer.param_groups for p in group["params"])
        gradient = quadratic.half_gradient(self.penalty, params)
        grads = []
        for name in gradient:
            p = params[name]
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
        if grads:  # in the dtype of the importance, because in float16 lam may overflow and F (theta - a) underflow
            torch._foreach_add_(grads, list(gradient.values()), alpha=self.strength)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start = perf_counter()
        with torch.inference_mode(False):
            importance = self.importance(trainer, pl_module)
            names = selected(pl_module, self.include, self.exclude)
            params = {name: p for name, p in trainable(pl_module).items() if name in names}
            importance = {name: importance[name] for name in params}
            anchor = {name: p.detach().to(importance[name].dtype, copy=True) for name, p in params.items()}
            new = quadratic.quadratic(importance, anchor)
            self.penalty = new if self.penalty is None else self.merge(self.penalty, new)
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds += perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        if self.penalty is None:
            return {}
        q = self.penalty
        return {"importance": snapshot(q.importance), "anchor": snapshot(q.anchor), "constant": q.constant.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.penalty = None
        if "anchor" in state_dict:
            self.penalty = Quadratic(state_dict["importance"], state_dict["anchor"], state_dict["constant"])

    def cost(self) -> dict[str, float]:
        """Return the cost, with the sum of the importance as ``total``."""
        kept = size_in_bytes(self.penalty.importance) + size_in_bytes(self.penalty.anchor) if self.penalty else 0
        total = sum(f.sum().item() for f in self.penalty.importance.values()) if self.penalty else 0.0
        return {"examples": self.examples, "bytes": kept, "total": total}

    def diagnosis(self, trainer: L.Trainer) -> str:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        group = max(groups, key=lambda group: float(group["lr"]))
        lr, name = group["lr"], type(trainer.optimizers[0]).__name__.lower()
        if self.penalty is None:
            return f"{name} lr={lr:g} is too large. Lower lr"
        stiffness = self.penalty_state().stiffness(lr)
        bound = sgd_bound(group) if isinstance(trainer.optimizers[0], SGD) else 2.0
        return (
            f"{name} lr={lr:g} with lam={self.lam:g} is too stiff (lr*lam*max importance = {stiffness:.3g}, SGD is "
            f"stable below {bound:.3g}). Lower lam or lr, or use optimizer=adam"
        )

    def _penalised(self, params: Iterator[nn.Parameter]) -> Params:
        """Return the parameters to whose gradient the penalty is added, by name.

        A parameter without a gradient (an unused head) is left out while the gradient of its penalty is zero, because with a
        gradient of zeros the optimiser's momentum could move it. It is examined again only if its version has changed.
        """
        assert self.penalty is not None
        penalised: Params = {}
        for p in params:
            name = self._names.get(id(p))
            if name is None or name not in self.penalty.importance or not p.requires_grad:
                continue
            if p.grad is None:
                if self._versions_at_anchor.get(name) == p._version:
                    continue
                if not quadratic.half_gradient(self.penalty, {name: p})[name].any():
                    self._versions_at_anchor[name] = p._version
                    continue
            penalised[name] = p
        return penalised
