"""SI: importance is how much of the decrease of the loss a weight accounts for, summed while the task is learned."""

from __future__ import annotations

from typing import Any, Unpack

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from clbench.params import Params, snapshot, trainable
from clbench.strategies import quadratic
from clbench.strategies.argument_checks import check_flag, check_positive
from clbench.strategies.patterns import selected
from clbench.strategies.penalty import QuadraticOptions, QuadraticStrategy
from clbench.strategies.quadratic import Quadratic


class SI(QuadraticStrategy):
    """Synaptic intelligence (Zenke et al. 2017): lam/2 * sum_i Omega_i (theta_i - theta*_i)^2 at the newest anchor.

    Every optimiser step adds to omega_i the loss decrease that weight i accounts for to first order (``PathIntegral``);
    a task adds omega_i / (Delta_i^2 + damping) to Omega_i, Delta_i the change over the task (``importance_of``). The
    gradient is that of the task loss alone, before penalty, weight decay and clipping; the movement is what was made
    of it. The paper has no 1/2 in the penalty, so its c is our lam / 2.

    Importance costs no pass over data, but four tensors per parameter while a task is learned, beside the two of the
    penalty. Under DDP gradients are averaged before they are read here, so every process has the same sums. All steps of a
    task count, with ``consolidate=best`` also those after the epoch whose weights are kept.

    Args:
        lam: strength, >= 0.
        damping: xi, > 0; bounds the importance of a weight that hardly moved.
        clamp: a task's importance is at least 0. In the paper it is not: a weight whose movement raised the loss has a
            negative one, and the penalty pushes it away from its anchor.
        options: ``include``, ``exclude``, see ``QuadraticStrategy``.

    Raises:
        ConfigError: a value outside its range.
    """

    shares_first_task = ("include", "exclude")  # of its sums; lam, damping and clamp act when the task has ended
    needs_labels = False
    one_process = False
    per_process = False
    merges_by_name = True

    def __init__(
        self, lam: float = 1.0, damping: float = 0.1, clamp: bool = False, **options: Unpack[QuadraticOptions]
    ) -> None:
        super().__init__(lam, **options)
        self.damping = check_positive("damping", damping, "The paper has 0.1.")
        self.clamp = check_flag("clamp", clamp)
        self._path = PathIntegral({})
        self._loaded: dict[str, Params] = {}
        self._scaled = False

    def importance(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Params:
        path = self._path
        importance = {}
        for name, p in trainable(pl_module).items():
            if name in path.sums:
                f = importance_of(path.sums[name], p.detach() - path.start[name], self.damping)
                importance[name] = f.clamp_(min=0) if self.clamp else f
            else:  # not held, or frozen when the task began
                importance[name] = torch.zeros_like(p, requires_grad=False)
        return importance

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return quadratic.recentre(old, new, decay=1.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        held = selected(pl_module, self.include, self.exclude)
        self._path = PathIntegral({name: p for name, p in trainable(pl_module).items() if name in held})
        if self._loaded:  # the task is one that was stopped
            self._path.load_state_dict(self._loaded)
            self._loaded = {}
        plugin = trainer.precision_plugin
        self._scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._path.end()  # of an earlier step in the same batch, under manual optimisation
        params = (p for group in optimizer.param_groups for p in group["params"])
        self._path.begin({self._names[id(p)]: p for p in params if id(p) in self._names}, may_skip=self._scaled)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._path.end()

    def _must_act(self) -> bool:
        return True  # it sums over every step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._path = PathIntegral({})

    def state_dict(self) -> dict[str, Any]:
        path = self._path.state_dict()
        return {**super().state_dict(), **({"path": path} if path["sums"] else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict.get("path", {})

    def diagnosis(self, trainer: L.Trainer) -> str:
        text = super().diagnosis(trainer)
        smallest = min((f.min().item() for f in self.penalty.importance.values()), default=0.0) if self.penalty else 0.0
        return text if smallest >= 0 else f"{text}; or clamp=True, as importance is down to {smallest:.3g}"


def importance_of(omega: Tensor, change: Tensor, damping: float) -> Tensor:
    """Importance omega / (Delta^2 + xi) of one task, of its path integral and its change (Zenke et al. 2017, eq. 5)."""
    return omega / (change.square() + damping)


class PathIntegral:
    """The sums omega = -sum over steps of g * (theta after - theta before) of one task (Zenke et al. 2017, eq. 3 and 4).

    With small steps the sum of omega over all parameters is the decrease of the loss. Kept in float32 or wider, on the
    device of each parameter; elementwise, and nothing waits for the device.

    Args:
        params: what is followed, as it is when the task begins.

    Attributes:
        start: copies of ``params``.
        sums: omega so far.
    """

    def __init__(self, params: Params) -> None:
        self.start = {
            n: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for n, p in params.items()
        }
        self.sums = {name: torch.zeros_like(p) for name, p in self.start.items()}
        self._gradient = {name: torch.empty_like(p) for name, p in self.start.items()}
        self._before = {name: torch.empty_like(p) for name, p in self.start.items()}
        self._stepping: dict[str, nn.Parameter] = {}

    def state_dict(self) -> dict[str, Params]:
        return {"start": snapshot(self.start), "sums": snapshot(self.sums)}

    def load_state_dict(self, state: dict[str, Params]) -> None:
        for name, p in self.start.items():
            p.copy_(state["start"][name])
            self.sums[name].copy_(state["sums"][name])

    @torch.no_grad()
    def begin(self, params: dict[str, nn.Parameter], may_skip: bool = False) -> None:
        """Before a step of ``params``.

        Args:
            params: by name; what is not followed or has no gradient is left out.
            may_skip: a loss scaler leaves out the step where a gradient is not finite; 0 * inf is then to be 0.
        """
        grads = {name: p.grad for name, p in params.items() if name in self.sums and p.grad is not None}
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
        """After that step; nothing where none has begun."""
        if not self._stepping:
            return
        moved_back = [self._before[name] for name in self._stepping]
        torch._foreach_sub_(moved_back, list(self._stepping.values()))
        torch._foreach_addcmul_(
            [self.sums[name] for name in self._stepping], [self._gradient[name] for name in self._stepping], moved_back
        )
        self._stepping = {}
