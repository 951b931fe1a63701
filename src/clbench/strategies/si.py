"""SI: importance is the contribution of a weight to the decrease of the loss, summed during the task."""

from __future__ import annotations

from typing import Any, Unpack

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from clbench.params import Params, named_parameters, snapshot, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import Strength, check_choice, check_positive
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy
from clbench.strategies.quadratic import Quadratic


class SI(QuadraticStrategy):
    """Synaptic intelligence (Zenke et al. 2017): the penalty lam/2 * sum_i Omega_i (theta_i - theta*_i)^2.

    theta* are the weights after the latest task. Every optimiser step adds to omega_i the decrease of the loss that weight i
    causes to first order (``PathIntegral``). A task then adds omega_i / (Delta_i^2 + damping) to Omega_i, where Delta_i is the
    change of the weight over the task (``importance_of``). The gradient is that of the task loss alone, before penalty, weight
    decay and clipping. The movement is the actual one. The paper has no 1/2 in the penalty, so its c is our lam / 2.

    SI needs no pass over data, but four tensors per parameter during a task, in addition to the two of the penalty. Under DDP
    gradients are averaged before they are read, so every process computes the same sums. All steps of a task count, also those
    after the epoch that ``consolidate=best`` selects.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        damping: xi in the paper, > 0. Bounds the importance of a weight that hardly moved.
        clamp: Where a negative importance is set to 0. ``none`` (or False) keeps it: a weight whose movement increased the loss
            has a negative importance, and the penalty pushes it away from its anchor, as in the paper. ``task`` (or True) cuts
            the importance of each task before it is added to Omega. ``sum`` cuts Omega each time a task has been added, as the
            authors' code does, so that a later task can take back what an earlier one has added.
        options: ``include`` and ``exclude`` of ``QuadraticStrategy``.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> si, module = SI(lam=30.0), BoringModel()  # any LightningModule
        >>> L.Trainer(max_epochs=1, barebones=True, callbacks=[si]).fit(module)
        >>> {name: f.shape for name, f in si.penalty.importance.items()}
        {'layer.weight': torch.Size([2, 32]), 'layer.bias': torch.Size([2])}
    """

    shares_first_task: bool | tuple[str, ...] = (
        "include",
        "exclude",
    )  # they select the sums; lam, damping and clamp act after the task
    needs_labels = False
    one_process = False
    per_process = False
    merges_by_name = True

    def __init__(
        self, lam: Strength = 1.0, damping: float = 0.1, clamp: bool | str = False, **options: Unpack[QuadraticOptions]
    ) -> None:
        super().__init__(lam, **options)
        self.damping = check_positive("damping", damping, "The paper uses 0.1.")
        clamp = {False: "none", True: "task"}[clamp] if isinstance(clamp, bool) else clamp
        self.clamp = check_choice("clamp", clamp, ("task", "sum", "none"))
        self._path = self.new_path({})
        self._loaded: dict[str, Any] = {}
        self._followed: set[str] = set()
        self._is_scaled = False

    def new_path(self, params: Params) -> PathIntegral:
        """Return what is summed up during a task, with no steps."""
        return PathIntegral(params)

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        path = self._path
        is_cut = self.clamp == "task" or (self.clamp == "sum" and self.penalty is None)  # the first sum is not merged
        importance = {}
        for name, p in trainable(pl_module).items():
            if name in path.sums:
                f = importance_of(path.sums[name], p.detach() - path.start[name], self.damping)
                importance[name] = f.clamp_(min=0) if is_cut else f
            else:  # frozen during the whole task
                importance[name] = torch.zeros_like(p, requires_grad=False)
        return importance

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        q = quadratic.recentre(old, new, decay=1.0)
        if self.clamp == "sum":
            q = q._replace(importance={name: f.clamp(min=0) for name, f in q.importance.items()})
        return q

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        path, self._loaded = self._loaded if trainer.ckpt_path is not None else {}, {}
        loaded = {name: p for name, p in named_parameters(pl_module).items() if name in path.get("sums", {})}
        self._path = self.new_path({**self._selected(pl_module), **loaded})
        if path:  # the task is resumed
            self._path.load_state_dict(path)
        self._followed = self._selected_names(pl_module)
        plugin = trainer.precision_plugin
        self._is_scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._path.end()  # in manual optimisation, an earlier step of the same batch
        params = (p for group in optimizer.param_groups for p in group["params"])
        named = {name: p for p in params if (name := self._names.get(id(p))) in self._followed and name is not None}
        self._path.begin(named, may_skip=self._is_scaled)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._path.end()

    def _acts_on(self, names: set[str]) -> set[str]:
        return names  # it sums over every step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._path = self.new_path({})

    def state_dict(self) -> dict[str, Any]:
        path = self._path.state_dict()
        return {**super().state_dict(), **({"path": path} if path["sums"] and self._pending else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict.get("path", {})

    def diagnosis(self, trainer: L.Trainer) -> str:
        text = super().diagnosis(trainer)
        smallest = min((f.min().item() for f in self.penalty.importance.values()), default=0.0) if self.penalty else 0.0
        return text if smallest >= 0 else f"{text}, or clamp=task, because importance is down to {smallest:.3g}"


def importance_of(omega: Tensor, change: Tensor, damping: float) -> Tensor:
    """Return the importance omega / (Delta^2 + xi) of one task (Zenke et al. 2017, eq. 5).

    Args:
        omega: Path integral of the task.
        change: Delta, the change of the weights over the task.
        damping: xi.
    """
    return omega / (change.square() + damping)


class PathIntegral:
    """The sums omega = -sum over steps of g * (theta after - theta before) of one task (Zenke et al. 2017, eq. 3 and 4).

    With small steps the sum of omega over all parameters is the decrease of the loss. The sums are in float32 or wider, on the
    device of each parameter, and no operation waits for the device.

    Args:
        params: The parameters to track, at their values at the start of the task. Another one is tracked from its first step.

    Attributes:
        start: Copies of the parameters at the start of the task.
        sums: omega so far.
    """

    def __init__(self, params: Params) -> None:
        self.start: Params = {}
        self.sums: Params = {}
        self._gradient: Params = {}
        self._before: Params = {}
        self._stepping: Params = {}
        for name, p in params.items():
            self._track(name, p)

    def _track(self, name: str, p: Tensor) -> None:
        self.start[name] = p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
        self.sums[name] = torch.zeros_like(self.start[name])
        self._gradient[name], self._before[name] = torch.empty_like(self.sums[name]), torch.empty_like(self.sums[name])

    def state_dict(self) -> dict[str, Params]:
        return {"start": snapshot(self.start), "sums": snapshot(self.sums)}

    def load_state_dict(self, state: dict[str, Params]) -> None:
        for name in state["sums"].keys() & self.sums.keys():
            self.start[name].copy_(state["start"][name])
            self.sums[name].copy_(state["sums"][name])

    @torch.no_grad()
    def begin(self, params: Params, may_skip: bool = False) -> None:
        """Record the gradients and weights before a step of ``params``.

        Args:
            params: Parameters by name. Those without a gradient are ignored.
            may_skip: Whether a loss scaler may skip the step if a gradient is not finite. Such gradients are then set to 0, so
                that a skipped step adds 0.
        """
        grads = {name: p.grad for name, p in params.items() if p.grad is not None}
        for name in grads.keys() - self.sums.keys():
            self._track(name, params[name])
        self._stepping = {name: params[name] for name in grads}
        if not grads:
            return
        gradient = [self._gradient[name] for name in grads]
        torch._foreach_copy_(gradient, list(grads.values()))
        torch._foreach_copy_([self._before[name] for name in grads], list(self._stepping.values()))
        if may_skip:
            for g in gradient:
                g.nan_to_num_(0.0, 0.0, 0.0)

    @torch.no_grad()
    def end(self) -> None:
        """Add the contribution of the step to the sums. Does nothing if no step was begun."""
        if not self._stepping:
            return
        moved_back = [self._before[name] for name in self._stepping]
        torch._foreach_sub_(moved_back, list(self._stepping.values()))
        torch._foreach_addcmul_(
            [self.sums[name] for name in self._stepping], [self._gradient[name] for name in self._stepping], moved_back
        )
        self._stepping = {}
