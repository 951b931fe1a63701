"""QuadraticStrategy: a quadratic penalty, applied as its exact gradient. Base of EWC, Online EWC, MAS, SI and L2.

The gradient lam * F (theta - a) is added in ``on_before_optimizer_step``: after unscaling, before clipping, once per
optimiser step. Accumulation, clipping, mixed precision, manual optimisation and DDP therefore need no special case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any, TypedDict
from uuid import uuid4

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from clbench.data import TaskSequence, find_task
from clbench.errors import StrategyError
from clbench.learner import Learner
from clbench.params import Params, fingerprints, named_parameters, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength, check_choice, check_flag, check_strength_per_task, check_tasks
from clbench.strategies.base import Strategy
from clbench.strategies.consolidation import fitted, merged, requiring_grad
from clbench.strategies.fit import (
    RECEIVERS,
    is_in_child,
    on_device,
    place_last,
    refuse_sharded,
    refuse_what_misses_the_penalty,
    return_state,
    save_again,
)
from clbench.strategies.optimizer_steps import StepWatch
from clbench.strategies.patterns import Patterns, selected
from clbench.strategies.penalty_state import PenaltyState, empty, sgd_bound
from clbench.strategies.quadratic import Quadratic
from clbench.strategies.step_size import check_step_size


class QuadraticOptions(TypedDict, total=False):
    """Options of every quadratic strategy that a subclass passes on, explained at ``QuadraticStrategy``."""

    include: Patterns
    exclude: Patterns
    frozen: bool | str
    grow: str | None
    consolidate_at: str
    keep_previous: bool
    store: str | None


class QuadraticStrategy(Strategy):
    """The penalty lam/2 * sum_i importance_i (theta_i - anchor_i)^2, added to the gradients of the optimiser.

    A subclass computes the importance of a task (``importance``) and merges it with that of earlier tasks (``merge``).

    Args:
        lam: Strength of the penalty, >= 0. A measured importance is a mean over examples, so lam does not depend on their number.
            A list has one strength per task: lam[i] multiplies the whole penalty of the earlier tasks while task i is trained.
            The first entry has no effect, because there is no penalty yet.
        include, exclude: Patterns on parameter names, see ``selected``. A parameter that is not selected has no importance and
            no anchor, and is not penalised. Both may be changed between tasks.
        frozen: Which parameters without ``requires_grad`` are measured. ``auto`` measures those that were trained in this task or
            already have an importance, so a backbone that is frozen in one task is protected in the next. A backbone that is
            never trained costs nothing. True measures all of them, False none.
        grow: ``rows`` allows a parameter to become larger between tasks, such as a head for new classes. The old part keeps its
            importance and its anchor, and the new part is free. With None another shape is an error.
        consolidate_at: ``fit`` measures the importance when the fit ends. With ``manual`` you call ``consolidate`` after each
            fit, for example after you have loaded the best checkpoint.
        keep_previous: Also store the penalty of the earlier tasks (8 more bytes per parameter), so that
            ``consolidate(..., replace=True)`` can measure the last task again.
        store: Where importance and anchor are kept, for large models. ``cpu`` keeps both in the memory of the host, from where
            each step copies them. ``bfloat16`` keeps the importance in 16 bits, with a relative error of at most 2^-9, and the
            anchor in the dtype of its parameter. With None both are in float32 or wider, on the device.

    Attributes:
        tasks: Number of tasks that have been consolidated.
        penalty: Importance and anchor, None before the end of the first task.
        previous: The penalty before the last consolidation, with ``keep_previous``.

    Raises:
        ConfigError: An argument is out of range. When training starts, a pattern matches no parameter, or the module lacks a
            parameter of the penalty. After a batch, an optimiser has stepped without the penalty. When the fit ends, the
            weights have changed since the importance was measured.

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
    penalty_type: Any = Quadratic  # a ``Penalty`` with ``from_state``
    merges_by_name = True  # merge treats each element alone; a subclass with another merge declares it again

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "merge" in vars(cls) and "merges_by_name" not in vars(cls):
            cls.merges_by_name = False

    def __init__(
        self,
        lam: Strength,
        include: Patterns = None,
        exclude: Patterns = None,
        *,
        frozen: bool | str = "auto",
        grow: str | None = None,
        consolidate_at: str = "fit",
        keep_previous: bool = False,
        store: str | None = None,
    ) -> None:
        self.lam = check_strength_per_task("lam", lam)
        self.include = include
        self.exclude = exclude
        self.frozen = frozen if isinstance(frozen, bool) else check_choice("frozen", frozen, ("auto",))
        self.grow = None if grow is None else check_choice("grow", grow, ("rows",))
        self.consolidate_at = check_choice("consolidate_at", consolidate_at, ("fit", "manual"))
        if consolidate_at == "manual" and type(self).importance_on is QuadraticStrategy.importance_on:
            raise StrategyError(
                f"consolidate_at=manual: expected fit, because {type(self).__name__} does not measure on examples that are given"
            )
        self.keep_previous = check_flag("keep_previous", keep_previous)
        self.store = None if store is None else check_choice("store", store, ("cpu", "bfloat16"))
        self.tasks = 0
        self.penalty: Quadratic | None = None
        self.previous: Quadratic | None = None
        self.seconds = 0.0
        self.examples = 0
        self._names: dict[int, str] = {}
        self._versions_at_anchor: dict[str, int] = {}
        self._trained: set[str] = set()  # in this task
        self._unmeasured: set[str] = set()
        self._dropped: set[str] = set()  # left out by patterns that were changed between tasks
        self._loaded_pending: bool | None = None  # of the state that was loaded
        self._pending = False  # a task has been trained and not consolidated
        self._started = False
        self._fingerprints: dict[str, int] = {}
        self._watch = StepWatch()
        self._key = uuid4().hex
        RECEIVERS[self._key] = self

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        """Return the importance of every trainable parameter for the task that has just been learned.

        The strategy keeps these tensors and may overwrite them, so return new ones.
        """
        raise TypeError(f"{type(self).__name__} does not define importance(trainer, pl_module)")

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        """Return the penalty after one more task. By default it is the sum of one penalty per task, in constant memory.

        It must not change its arguments in place.
        """
        return quadratic.add(old, new)

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.tasks, self.penalty, self.previous, self.examples = 0, None, None, 0
        self._trained, self._unmeasured, self._dropped = set(), set(), set()
        self._pending, self._loaded_pending = False, None
        self._selected_names(learner)  # a pattern that matches nothing is an error in the plan of a run, too

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        check_tasks("lam", self.lam, len(sequence))
        if self.consolidate_at != "fit":
            raise StrategyError(
                f"consolidate_at={self.consolidate_at}: expected fit, because a run consolidates each task itself. Try "
                "consolidate=best to keep the best weights"
            )

    @property
    def lam_now(self) -> float:
        """The value of ``lam`` for the task that is trained, or that was trained last."""
        if not isinstance(self.lam, tuple):
            return self.lam
        return self.lam[self.tasks if self._pending else max(self.tasks - 1, 0)]

    @property
    def strength(self) -> float:
        """The factor of q/2 in the loss, see ``PenaltyState``."""
        return self.lam_now

    def penalty_state(self) -> PenaltyState:
        return PenaltyState(self.penalty or empty(), self.strength, self.lam_now)

    def stiffness(self, lr: float) -> float:
        """Return lr * lam * max importance. SGD without momentum is stable on the penalty while this is below 2."""
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
            if (task := find_task(trainer)) is not None:
                check_tasks("lam", self.lam, len(task.sequence))
            self._started, self._fingerprints = False, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        refuse_what_misses_the_penalty(trainer, pl_module)
        self.begin(pl_module, resumed=trainer.ckpt_path is not None)
        self._warn_of_step_size(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained |= set(trainable(pl_module))
        self._warn_of_unmeasured(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._watch.start_batch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch.missed is not None:
            raise StrategyError(
                f"{self._watch.missed} stepped without Lightning's wrapper, so {type(self).__name__} could not act on its step. "
                "In training_step use self.optimizers().step(), not the raw optimizer or steps in backward hooks (docs/faq.md)"
            )

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self.add_gradients(optimizer)

    # --- any training loop -------------------------------------------------------------------------------------------

    def begin(self, module: nn.Module, resumed: bool = False) -> None:
        """Prepare the penalty for a new task of ``module``. Lightning needs no call; another training loop calls it first.

        Such a loop calls ``add_gradients`` before each step of an optimiser, and ``consolidate`` when the task has ended.

        Args:
            module: The module, before its first step.
            resumed: Whether the training of a task continues.

        Raises:
            ConfigError: The last task is not consolidated, a pattern matches no parameter, or the module lacks a parameter of
                the penalty.
        """
        if self._pending and not resumed and (self.consolidate_at == "manual" or self._loaded_pending):
            remedy = "Call strategy.consolidate(module, loader) after each fit, as consolidate_at=manual asks for"
            if self.consolidate_at == "fit":
                remedy = (
                    "Finish it with trainer.fit(..., ckpt_path=...) first, or load the state of a checkpoint of its end"
                )
            raise StrategyError(
                f"the last task is not consolidated, so this one would be learned without its penalty. {remedy}"
            )
        if isinstance(self.lam, tuple) and self.tasks >= len(self.lam):
            check_tasks("lam", self.lam, self.tasks + 1)
        if not resumed:
            self._trained = set()
        elif self._loaded_pending is False:
            rank_zero_warn(
                "the checkpoint is that of a consolidated task, so this training counts as a new task, and is penalised. To "
                "train the same task for longer, resume from a checkpoint that was saved before its end"
            )
        params = named_parameters(module)  # a parameter may be unfrozen during the task
        self._names = {id(p): name for name, p in params.items()}
        self._versions_at_anchor = {}
        self._trained |= set(trainable(module))
        self._started, self._pending, self._loaded_pending = True, True, None
        names = self._selected_names(module)  # a pattern that matches nothing is an error before training
        if self.penalty is not None:
            before = set(self.penalty.anchor)
            self.penalty = self._fitted(self.penalty, module)
            self._dropped |= before - set(self.penalty.anchor)
        self._warn_of_unmeasured(module)
        self._start_watching(params, names)

    def add_gradients(self, optimizer: Optimizer) -> None:
        """Add the gradient of the penalty to those of the parameters of ``optimizer``, before it steps."""
        self._watch.announce(optimizer)
        if self.penalty is None or self.strength == 0:
            return
        params = self._penalised(p for group in optimizer.param_groups for p in group["params"])
        at_once = [{name: p} for name, p in params.items()] if self.store == "cpu" else [params]
        for some in at_once:
            self._add_gradient(self._half_gradient(some), some)

    def _add_gradient(self, half: Params, params: Params) -> None:
        """Add the gradient of the penalty, ``strength`` times that of q / 2, to the gradients of the parameters."""
        grads = []
        for name in half:
            p = params[name]
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
        if grads:  # in the dtype of the importance, because in float16 lam may overflow and F (theta - a) underflow
            torch._foreach_add_(grads, list(half.values()), alpha=self.strength)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_watching()
        if self.consolidate_at == "fit":
            self.end_task(trainer, pl_module)
            save_again(trainer)
        if is_in_child(trainer):
            return_state(trainer, self._key, self.state_dict())

    def end_task(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Consolidate the task that has been trained, at the weights that the fit leaves."""
        self._consolidate(pl_module, lambda: self.importance(trainer, pl_module))
        self._fingerprints = fingerprints(self._selected(pl_module))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Consolidate a task that was fully trained when this fit was resumed; check that the weights are still the anchored."""
        is_resumed = not self._started and trainer.ckpt_path is not None
        if is_resumed and self._pending and self.consolidate_at == "fit":
            with on_device(pl_module, trainer.strategy.root_device):
                self.on_train_start(trainer, pl_module)
                self.on_train_end(trainer, pl_module)
        self._started = False
        now = fingerprints({name: p for name, p in self._selected(pl_module).items() if name in self._fingerprints})
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
        if replace and not self.keep_previous:
            raise StrategyError(
                "replace=True needs the penalty before the last task. Construct the strategy with keep_previous=True"
            )
        self._stop_watching()
        self._trained |= set(trainable(module))
        trainer = getattr(module, "_trainer", None)
        with on_device(module, trainer.strategy.root_device) if trainer is not None else nullcontext():
            self._consolidate(module, lambda: self.importance_on(module, batches), replace)

    def importance_on(self, module: nn.Module, batches: Iterable[Any] | None) -> Params:
        """Return the importance of every trainable parameter, measured on ``batches``, without a Trainer."""
        raise StrategyError(f"{type(self).__name__} cannot be consolidated without a Trainer. Use consolidate_at='fit'")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"pending": self._pending, "tasks": self.tasks}
        names = {"trained": self._trained, "unmeasured": self._unmeasured, "dropped": self._dropped}
        state |= {key: sorted(value) for key, value in names.items() if value}
        for prefix, q in (("", self.penalty), ("previous_", self.previous)):
            if q is not None:
                state |= {f"{prefix}{part}": value for part, value in q.state().items()}  # never changed in place
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.penalty, self.previous = (
            self.penalty_type.from_state(
                {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            )
            if {f"{prefix}anchor", f"{prefix}importance"} & state_dict.keys()
            else None
            for prefix in ("", "previous_")
        )
        self.tasks = state_dict.get("tasks", 0)
        if isinstance(self.lam, tuple) and self.penalty is not None and not self.tasks:
            raise StrategyError(
                f"lam={list(self.lam)}: expected a number, because the state is of a version that did not count the tasks"
            )
        self._pending = state_dict.get("pending", False)
        self._loaded_pending = state_dict.get("pending")
        self._trained, self._unmeasured, self._dropped = (
            set(state_dict.get(key, ())) for key in ("trained", "unmeasured", "dropped")
        )

    def cost(self) -> dict[str, float]:
        """Return the cost, with the sum of the importance as ``total``."""
        kept = self.penalty.size_in_bytes() if self.penalty else 0
        total = sum(f.sum().item() for f in self.penalty.importance.values()) if self.penalty else 0.0
        return {"examples": self.examples, "bytes": kept, "total": total}

    def diagnosis(self, trainer: L.Trainer) -> str:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        group = max(groups, key=lambda group: float(group["lr"]))
        lr, name = group["lr"], type(trainer.optimizers[0]).__name__.lower()
        if self.penalty is None:
            return f"{name} lr={lr:g} is too large. Lower lr"
        stiffness = self.stiffness(lr)
        bound = sgd_bound(group) if isinstance(trainer.optimizers[0], SGD) else 2.0
        return (
            f"{name} lr={lr:g} with lam={self.lam_now:g} is too stiff (lr*lam*max importance = {stiffness:.3g}, SGD is "
            f"stable below {bound:.3g}). Lower lam or lr, or use optimizer=adam"
        )

    def _half_gradient(self, params: Params) -> Params:
        """Return the gradient of q / 2 for some parameters."""
        assert self.penalty is not None
        return self.penalty.half_gradient(params)

    def _penalised(self, params: Iterator[nn.Parameter]) -> Params:
        """Return the parameters to whose gradient the penalty is added, by name.

        A parameter without a gradient (an unused head) is left out while the gradient of its penalty is zero, because with a
        gradient of zeros the optimiser's momentum could move it. It is examined again only if its version has changed.
        """
        assert self.penalty is not None
        penalised: Params = {}
        for p in params:
            name = self._names.get(id(p))
            if name is None or name not in self.penalty.anchor or not p.requires_grad:
                continue
            if p.grad is None:
                if self._versions_at_anchor.get(name) == p._version:
                    continue
                if not self._half_gradient({name: p})[name].any():
                    self._versions_at_anchor[name] = p._version
                    continue
            penalised[name] = p
        return penalised

    def _selected(self, module: nn.Module) -> Params:
        """Return the parameters that the patterns select and that require grad, by name."""
        names = self._selected_names(module)
        return {name: p for name, p in trainable(module).items() if name in names}

    def _selected_names(self, module: nn.Module) -> set[str]:
        known = self._dropped | set(self.penalty.anchor if self.penalty else ())
        return selected(module, self.include, self.exclude, known)

    def _fitted(self, q: Quadratic, module: nn.Module) -> Quadratic:
        """Return the penalty for the module as it is now."""
        names = self._selected_names(module)
        params = named_parameters(module)
        on_device = self.store != "cpu"
        return fitted(q, params, self.include, self.exclude, names, grow=self.grow is not None, on_device=on_device)

    @contextmanager
    def measurable(self, module: nn.Module) -> Iterator[None]:
        """Let those frozen parameters require grad inside that ``frozen`` selects."""
        params = named_parameters(module)
        names = set(params) if self.frozen is True else set()
        if self.frozen == "auto":
            names = self._trained | set(self.penalty.anchor if self.penalty else ())
        names &= self._selected_names(module)
        with requiring_grad(params[name] for name in names):
            yield

    def _consolidate(self, module: nn.Module, measure: Callable[[], Params], replace: bool = False) -> None:
        """Measure the importance and merge it into the penalty, or into the one before with ``replace``."""
        start = perf_counter()
        with torch.inference_mode(False), self.measurable(module):
            importance = measure()
            params = self._selected(module)
            self._unmeasured = {name for name, p in named_parameters(module).items() if not p.requires_grad}
            importance = self._selection(importance, params)
            old = self.previous if replace else self.penalty
            old = None if old is None else self._fitted(old, module)
            self.penalty = None
            if self.keep_previous:
                self.previous = old
            parts = [old] if old is not None else []
            del old
            self.penalty = self._merged(parts, importance, params)
        self.tasks += not replace
        self._pending, self._loaded_pending = False, None
        device = next(module.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds += perf_counter() - start

    def _selection(self, importance: Params, params: Params) -> Params:
        """Return the importance of the parameters that are selected."""
        return {name: importance[name] for name in params}

    def _merged(self, old: list[Quadratic], importance: Params, params: Params) -> Quadratic:
        """Return the penalty with the importance of a task merged into it, see ``consolidation.merged``."""
        return merged(old, importance, params, self.merge, self.merges_by_name, self.store)

    def _start_watching(self, params: Params, names: set[str]) -> None:
        """Watch the steps of those of the selected parameters of which no step may be missed."""
        if watched := self._acts_on(names):
            self._watch.start({name: params[name] for name in watched})

    def _stop_watching(self) -> None:
        """Raise StrategyError if parameters changed, and the penalty was added before no step."""
        if changed := self._watch.stop():
            raise StrategyError(
                f"{changed[0]} and {len(changed) - 1} more parameters changed, but no step was announced, so "
                f"{type(self).__name__} could not act. In training_step use self.optimizers().step() of a torch.optim.Optimizer "
                "(docs/faq.md). In a loop without Lightning call add_gradients(optimizer) before each step"
            )

    def _acts_on(self, names: set[str]) -> set[str]:
        """Return those of the selected parameters of which no step may be missed."""
        return set(self.penalty.anchor) if self.penalty is not None and self.strength > 0 else set()

    def _warn_of_unmeasured(self, module: nn.Module) -> None:
        began = sorted(self._unmeasured & set(self._selected(module)))
        if began:
            rank_zero_warn(
                f"{began[0]} and {len(began) - 1} more parameters were frozen when the importance was measured, and are trained "
                "now. Earlier tasks do not protect them. Use frozen=True to measure frozen parameters too"
            )
        self._unmeasured -= set(began)

    def _warn_of_step_size(self, trainer: L.Trainer) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(getattr(callback, "watches_step_size", False) for callback in callbacks):
            for _, text in check_step_size(self.penalty_state(), trainer.optimizers):
                rank_zero_warn(text)
