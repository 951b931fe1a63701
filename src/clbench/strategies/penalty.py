"""QuadraticStrategy: a quadratic penalty, applied as its exact gradient; the base of EWC, Online EWC, MAS, SI and L2.

The gradient lam * F (theta - a) is added in ``on_before_optimizer_step``: after unscaling, before clipping, once per
optimiser step. So accumulation, clipping, mixed precision, manual optimisation and DDP need no special case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypedDict
from uuid import uuid4

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from clbench.data import TaskSequence
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import Params, named_parameters, placed_like, size_in_bytes, snapshot, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import check_choice, check_flag, check_strength
from clbench.strategies.base import Strategy
from clbench.strategies.fit import (
    RECEIVERS,
    can_grow,
    fingerprints,
    grown,
    is_in_child,
    place_last,
    refuse_sharded,
    return_state,
    save_again,
)
from clbench.strategies.optimizer_steps import StepWatch
from clbench.strategies.patterns import Patterns, is_left_out, selected
from clbench.strategies.penalty_state import PenaltyState, empty
from clbench.strategies.quadratic import Quadratic
from clbench.strategies.step_size import check_step_size


class QuadraticOptions(TypedDict, total=False):
    """Options of every quadratic strategy, which a subclass passes on; ``QuadraticStrategy`` describes them."""

    include: Patterns
    exclude: Patterns
    frozen: bool | str
    grow: str | None
    consolidate_at: str
    keep_previous: bool


class QuadraticStrategy(Strategy):
    """Penalty lam/2 * sum_i importance_i (theta_i - anchor_i)^2 on the optimiser's gradients.

    A subclass computes the importance of a task (``importance``) and merges it with that of earlier tasks (``merge``).

    Args:
        lam: strength, >= 0; a measured importance is a mean over examples, so it does not depend on their number.
        include, exclude: patterns on the names of parameters, see ``selected``. A parameter that is not selected has no
            importance and no anchor, and learns freely. Patterns may be changed between tasks.
        frozen: which parameters without ``requires_grad`` are measured. ``"auto"``: those that trained in this task or have an
            importance already, so that a backbone which is frozen in one task is protected in the next; a backbone that never
            trains costs nothing. True: all. False: none.
        grow: ``"rows"``: a parameter may become larger between tasks (a head with new classes, a vocabulary with new words).
            The part that existed keeps its importance and its anchor, what is new is free. None: a changed shape is an error.
        consolidate_at: ``"fit"``: importance is measured when the fit ends. ``"manual"``: you call ``consolidate`` after each
            fit, for example after loading the best checkpoint.
        keep_previous: keep the penalty of the earlier tasks next to the current one (8 more bytes per parameter), so that
            ``consolidate(..., replace=True)`` can measure the last task again.

    Attributes:
        penalty: importance and anchor; None before the first task has ended.

    Raises:
        ConfigError: ``lam`` negative or not finite; when training starts, a pattern that matches no parameter, a parameter of the
            penalty that the module does not have; when training ends, weights that changed after the consolidation.
    """

    shares_first_task: bool | tuple[str, ...] = True  # without a penalty no hook changes anything
    needs_labels = False
    one_process = False
    per_process = False
    merges_by_name = True  # merge treats each parameter alone; a subclass with another merge declares it again

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "merge" in vars(cls) and "merges_by_name" not in vars(cls):
            cls.merges_by_name = False

    def __init__(
        self,
        lam: float,
        include: Patterns = None,
        exclude: Patterns = None,
        *,
        frozen: bool | str = "auto",
        grow: str | None = None,
        consolidate_at: str = "fit",
        keep_previous: bool = False,
    ) -> None:
        self.lam = check_strength("lam", lam)
        self.include = include
        self.exclude = exclude
        self.frozen = frozen if isinstance(frozen, bool) else check_choice("frozen", frozen, ("auto",))
        self.grow = None if grow is None else check_choice("grow", grow, ("rows",))
        self.consolidate_at = check_choice("consolidate_at", consolidate_at, ("fit", "manual"))
        self.keep_previous = check_flag("keep_previous", keep_previous)
        self.penalty: Quadratic | None = None
        self.previous: Quadratic | None = None
        self.seconds = 0.0
        self.examples = 0
        self._names: dict[int, str] = {}
        self._still: dict[str, int] = {}
        self._trained: set[str] = set()
        self._unmeasured: set[str] = set()
        self._pending = False  # a task has been trained and not consolidated
        self._started = False
        self._fingerprints: dict[str, int] = {}
        self._watch = StepWatch()
        self._key = uuid4().hex
        RECEIVERS[self._key] = self

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        """Return the importance of every trainable parameter for the task that has just been learned."""
        raise TypeError(f"{type(self).__name__} does not define importance(trainer, pl_module)")

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        """Return the penalty after one more task: the sum of one penalty per task, in constant memory."""
        return quadratic.add(old, new)

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.penalty, self.previous, self.examples = None, None, 0
        self._unmeasured, self._pending = set(), False

    @property
    def strength(self) -> float:
        """The factor of q/2 in the loss."""
        return self.lam

    def penalty_state(self) -> PenaltyState:
        return PenaltyState(self.penalty or empty(), self.strength, self.lam)

    def stiffness(self, lr: float) -> float:
        """Return lr * lam * max importance: SGD without momentum is stable on the penalty while this is below 2."""
        return self.penalty_state().stiffness(lr)

    def value(self, pl_module: nn.Module) -> Tensor:
        """Return the penalty at the current weights, a scalar."""
        return self.penalty_state().value(trainable(pl_module))

    # --- Lightning ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_sharded(trainer)
            place_last(self, trainer)
            self._started, self._fingerprints = False, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        plugin = trainer.precision_plugin
        fused = [o for o in trainer.optimizers if getattr(o, "_step_supports_amp_scaling", False)]
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and fused:
            raise StrategyError(
                f"{type(fused[0]).__name__} is fused under 16-mixed precision, so gradients stay scaled when the penalty "
                "is added: use fused=False or precision=bf16-mixed"
            )
        if any(group.get("line_search_fn") for optimizer in trainer.optimizers for group in optimizer.param_groups):
            raise StrategyError(
                "line_search_fn compares values of the loss, in which the penalty is not: use line_search_fn=None, or another "
                "optimizer"
            )
        for name, part in pl_module.named_modules():
            if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
                raise StrategyError(
                    f"{name} has sparse gradients, to which a penalty cannot be added: make it with sparse=False"
                )
        self._refuse_lazy(pl_module)
        if self._pending and self.consolidate_at == "manual" and trainer.ckpt_path is None:
            raise StrategyError(
                "the last task is not consolidated, so this one would be learned without its penalty. Call "
                "strategy.consolidate(module, loader) after each fit, as consolidate_at=manual asks for"
            )
        params = named_parameters(pl_module)  # also what is frozen now and not later in the task
        held = selected(
            pl_module, self.include, self.exclude
        )  # a pattern that matches nothing is an error before training
        self._names = {id(p): name for name, p in params.items()}
        self._still = {}
        self._trained = set(trainable(pl_module))
        self._started, self._pending = True, True
        if self.penalty is not None:
            self.penalty = self._fitted(self.penalty, params, held)
        self._warn_of_unmeasured(pl_module)
        self._warn_of_step_size(trainer)
        if self._must_act():
            self._watch.start(params[name] for name in held)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._unmeasured:
            self._trained |= set(trainable(pl_module))
            self._warn_of_unmeasured(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._watch.announced = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch.missed is not None:
            raise StrategyError(
                f"{self._watch.missed} stepped without Lightning's wrapper, so {type(self).__name__} could not act on its step. "
                "In training_step use self.optimizers().step(), not the raw optimizer or steps in backward hooks (docs/faq.md)"
            )

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._watch.announced = True
        if self.penalty is None or self.strength == 0:
            return
        params = self._moving(p for group in optimizer.param_groups for p in group["params"])
        gradient = quadratic.half_gradient(self.penalty, params)
        grads = []
        for name in gradient:
            p = params[name]
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
        if grads:  # in the dtype of the importance: in float16 lam may be infinite, and F (theta - a) 0
            torch._foreach_add_(grads, list(gradient.values()), alpha=self.strength)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._watch.stop()
        if self.consolidate_at == "fit":
            with self._unfrozen(pl_module):
                self._consolidate(pl_module, lambda: self.importance(trainer, pl_module))
            self._fingerprints = fingerprints(self._held(pl_module))
            save_again(trainer)
        if is_in_child(trainer):
            return_state(trainer, self._key, self.state_dict())

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Consolidate a task that was fully trained when this fit was resumed; check that the weights are still the anchored."""
        if not self._started and self._pending and trainer.ckpt_path is not None:
            device = pl_module.device
            pl_module.to(trainer.strategy.root_device)
            self._trained = set(trainable(pl_module))
            self.on_train_end(trainer, pl_module)
            pl_module.to(device)
        self._started = False
        now = fingerprints({name: p for name, p in self._held(pl_module).items() if name in self._fingerprints})
        changed = [name for name, value in now.items() if value != self._fingerprints[name]]
        self._fingerprints = {}
        if changed:
            raise StrategyError(
                f"{changed[0]} and {len(changed) - 1} more parameters changed after the importance was measured, so the penalty "
                "is anchored at other weights. Use consolidate_at='manual' and call strategy.consolidate(module, loader)"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._watch.stop()
        self._started = False

    def consolidate(self, module: nn.Module, batches: Iterable[Any] | None = None, *, replace: bool = False) -> None:
        """Measure the importance of the task just learned at the current weights of ``module``, and add it to the penalty.

        Args:
            module: the module, after you have loaded the weights to keep.
            batches: the examples to measure on, such as the training loader; strategies that measure need them.
            replace: measure the last task again instead of adding another. Needs ``keep_previous=True``.

        Raises:
            ConfigError: ``replace`` without ``keep_previous``; no ``batches`` for a strategy that measures.
        """
        if replace:
            if not self.keep_previous:
                raise StrategyError(
                    "replace=True needs the penalty before the last task. Construct the strategy with keep_previous=True"
                )
            self.penalty = self.previous
        self._trained |= set(trainable(module))
        with self._unfrozen(module):
            self._consolidate(module, lambda: self.importance_on(module, batches))

    def importance_on(self, module: nn.Module, batches: Iterable[Any] | None) -> Params:
        """Return the importance of every trainable parameter, measured on ``batches``, without a Trainer."""
        raise StrategyError(f"{type(self).__name__} cannot be consolidated without a Trainer. Use consolidate_at='fit'")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"pending": True} if self._pending else {}
        if self._unmeasured:
            state["unmeasured"] = sorted(self._unmeasured)
        for prefix, q in (("", self.penalty), ("previous_", self.previous)):
            if q is not None:
                state[f"{prefix}importance"], state[f"{prefix}anchor"] = snapshot(q.importance), snapshot(q.anchor)
                state[f"{prefix}constant"] = q.constant.clone()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.penalty, self.previous = (
            Quadratic(state_dict[f"{prefix}importance"], state_dict[f"{prefix}anchor"], state_dict[f"{prefix}constant"])
            if f"{prefix}anchor" in state_dict
            else None
            for prefix in ("", "previous_")
        )
        self._pending = state_dict.get("pending", False)
        self._unmeasured = set(state_dict.get("unmeasured", ()))

    def cost(self) -> dict[str, float]:
        """With ``total``, the sum of the importance."""
        kept = size_in_bytes(self.penalty.importance) + size_in_bytes(self.penalty.anchor) if self.penalty else 0
        total = sum(f.sum().item() for f in self.penalty.importance.values()) if self.penalty else 0.0
        return {"examples": self.examples, "bytes": kept, "total": total}

    def diagnosis(self, trainer: L.Trainer) -> str:
        lr = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        name = type(trainer.optimizers[0]).__name__.lower()
        if self.penalty is None:
            return f"{name} lr={lr:g} is too large; lower it"
        stiffness = self.stiffness(lr)
        return (
            f"{name} lr={lr:g} with lam={self.lam:g} is too stiff (lr*lam*max importance = {stiffness:.3g}, SGD is "
            "stable below 2); lower lam or lr, or use optimizer=adam"
        )

    def _moving(self, params: Iterator[nn.Parameter]) -> Params:
        """The parameters whose penalty gradient is to be added, by name.

        A parameter without a gradient (an unused head) stays out while its penalty gradient is zero: a gradient of
        zeros would let the optimiser's carried momentum move it. It is looked at only when its version has changed.
        """
        assert self.penalty is not None
        moving: Params = {}
        for p in params:
            name = self._names.get(id(p))
            if name is None or name not in self.penalty.importance or not p.requires_grad:
                continue
            if p.grad is None:
                if self._still.get(name) == p._version:
                    continue
                if not quadratic.half_gradient(self.penalty, {name: p})[name].any():
                    self._still[name] = p._version
                    continue
            moving[name] = p
        return moving

    # --- consolidation -------------------------------------------------------------------------------------------------

    def _held(self, module: nn.Module) -> Params:
        """The parameters that are selected and require grad, by name."""
        held = selected(module, self.include, self.exclude)
        return {name: p for name, p in trainable(module).items() if name in held}

    def _consolidate(self, module: nn.Module, measure: Callable[[], Params]) -> None:
        """Measure, and merge the result into the penalty."""
        start = perf_counter()
        with torch.inference_mode(False):
            importance = measure()
            params = self._held(module)
            everything = named_parameters(module)
            self._unmeasured = {name for name, p in everything.items() if not p.requires_grad and p.is_floating_point()}
            importance = {name: importance[name] for name in params}
            if self.keep_previous:
                self.previous = self.penalty and Quadratic(
                    snapshot(self.penalty.importance), snapshot(self.penalty.anchor), self.penalty.constant
                )
            self.penalty = self._merged(importance, params)
        self._pending = False
        device = next(iter(params.values())).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds += perf_counter() - start

    def _merged(self, importance: Params, params: Params) -> Quadratic:
        """Return the penalty with ``importance`` merged into it. Empties ``importance`` and frees the old penalty.

        Merges one parameter at a time where ``merge`` allows it, so that no second copy of all of them is needed.
        """
        if self.penalty is None or not self.merges_by_name:
            anchor = {name: p.detach().to(importance[name].dtype, copy=True) for name, p in params.items()}
            new = quadratic.quadratic(importance, anchor)
            return new if self.penalty is None else self.merge(self.penalty, new)
        zero, constant = torch.zeros_like(self.penalty.constant), self.penalty.constant
        f, a = dict(self.penalty.importance), dict(self.penalty.anchor)
        self.penalty = None
        constant = self.merge(Quadratic({}, {}, constant), Quadratic({}, {}, zero)).constant
        for name in [*f, *(name for name in importance if name not in f)]:
            old = Quadratic({name: f.pop(name)}, {name: a.pop(name)}, zero) if name in f else Quadratic({}, {}, zero)
            new = Quadratic({}, {}, zero)
            if name in importance:
                mine = importance.pop(name)
                new = Quadratic({name: mine}, {name: params[name].detach().to(mine.dtype, copy=True)}, zero)
            merged = self.merge(old, new)
            f[name], a[name] = merged.importance[name], merged.anchor[name]
            constant = constant + merged.constant
        return Quadratic(f, a, constant)

    @contextmanager
    def _unfrozen(self, module: nn.Module) -> Iterator[None]:
        """Let the frozen parameters that are to be measured require grad inside."""
        names: set[str] = set()
        if self.frozen is True:
            names = set(named_parameters(module))
        elif self.frozen == "auto":
            names = self._trained | set(self.penalty.importance if self.penalty else ())
        held = selected(module, self.include, self.exclude)
        frozen = [
            p
            for name, p in named_parameters(module).items()
            if name in names and name in held and not p.requires_grad and p.is_floating_point()
        ]
        for p in frozen:
            p.requires_grad_(True)
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)

    # --- before training -----------------------------------------------------------------------------------------------

    def _must_act(self) -> bool:
        """Return whether a step that this strategy does not see would be wrong."""
        return self.penalty is not None and self.strength > 0

    def _fitted(self, q: Quadratic, params: Params, held: set[str]) -> Quadratic:
        """Return the penalty for the module as it is now: without what is excluded, larger where it grew, on its devices."""
        importance = {name: f for name, f in q.importance.items() if name in held or name not in params}
        missing = [name for name in importance if name not in params and not self._is_excluded(name)]
        if missing:
            others = ", ".join([name for name in params if name not in importance][:3]) or "no others"
            raise StrategyError(
                f"{len(missing)} parameters of the penalty are not in the module: {', '.join(missing[:3])}. Were they renamed or "
                f"removed? The module has {others}. Keep their names, or leave them out by strategy.exclude = [...]"
            )
        importance = {name: f for name, f in importance.items() if name in params}
        for name, f in importance.items():
            if params[name].shape == f.shape:
                continue
            if self.grow is None or not can_grow(f.shape, params[name].shape):
                raise StrategyError(
                    f"{name} has shape {tuple(params[name].shape)}, but {tuple(f.shape)} when its importance was measured. If it "
                    "grew, keep the old part by strategy.grow = 'rows'; or leave it out by strategy.exclude = [...], or give a "
                    "new head a name of its own"
                )
        anchor = {name: q.anchor[name] for name in importance}
        if self.grow is not None:
            shapes = {name: params[name].shape for name in importance}
            importance, anchor = grown(importance, shapes), grown(anchor, shapes)
        return Quadratic(placed_like(importance, params), placed_like(anchor, params), q.constant)

    def _is_excluded(self, name: str) -> bool:
        """Return whether the patterns leave out a parameter that the module does not have any more."""
        return is_left_out(name, self.include, self.exclude)

    def _refuse_lazy(self, module: nn.Module) -> None:
        lazy = [name for name, p in module.named_parameters() if is_lazy(p)]
        if lazy:
            raise StrategyError(
                f"{lazy[0]} has no shape yet (a lazy layer). Run one batch through the module before fit: module(x)"
            )

    def _warn_of_unmeasured(self, module: nn.Module) -> None:
        began = sorted(self._unmeasured & set(trainable(module)) & selected(module, self.include, self.exclude))
        if began and self.frozen != True:  # noqa: E712
            rank_zero_warn(
                f"{began[0]} and {len(began) - 1} more parameters were frozen when importance was measured, and train now: "
                "earlier tasks do not protect them. Use frozen=True to measure frozen parameters too"
            )
        self._unmeasured -= set(began)

    def _warn_of_step_size(self, trainer: L.Trainer) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(getattr(callback, "watches_step_size", False) for callback in callbacks):
            for _, text in check_step_size(self.penalty_state(), trainer.optimizers):
                rank_zero_warn(text)
