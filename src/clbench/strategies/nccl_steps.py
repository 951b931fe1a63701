"""The training step of NCCL: inner steps on theta, then outer steps on the calibration."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from clbench.data import Batch
from clbench.errors import StrategyError
from clbench.nets.calibration import Calibrated, cached_weights
from clbench.strategies.distillation import divergence
from clbench.strategies.rehearsal import RehearsalStrategy

Parts = dict[str, Tensor]
"""Values of a step by the names under which they are logged."""


class TwoLevels(RehearsalStrategy):
    """The steps of ``NCCL``, which sets the options and, at the start of a fit, the tensors below.

    Attributes:
        _theta: Trained parameters of the inner level.
        _features: scale and shift of the calibration.
        _weights: Layers with a psi.
        _tiled: Those of ``_weights`` whose theta~ is computed explicitly.
        _earlier, _same: Slots of the memory with examples of earlier tasks, and of the current task.
        _at_start: theta~ at the start of the task.
        _has_consolidation: Whether term a is not zero.
    """

    lam: float
    gamma: float
    reg: float
    replay_size: int
    inner_steps: int
    outer_steps: int
    outer_lr: float
    temperature: float
    inner_clip: float | None
    outer_clip: float | None
    anchor: str
    kl: str
    terms: frozenset[str]
    rehearsal: bool
    _theta: list[Tensor]
    _features: list[Tensor]
    _weights: list[Calibrated]
    _tiled: list[Calibrated]
    _earlier: Tensor
    _same: Tensor
    _at_start: list[Tensor]
    _has_consolidation: bool

    def update(self, batch: Batch) -> Parts:
        """Learn from one batch: inner steps on theta, then outer steps on the calibration."""
        if self.rehearsal:
            self.remember(batch)
        anchor = self._at_start
        for step in range(self.inner_steps):
            last = step == self.inner_steps - 1
            if (self.anchor == "batch" and step == 0) or (self.anchor == "last_inner" and last):
                anchor = self._weights_now()
            parts = self._inner_step(self._redraw(batch) if step else batch, last)
        if self.terms and (self._weights or self._features):
            for _ in range(self.outer_steps):
                parts |= self._outer_step(len(batch.y), anchor)
        self._step_schedulers("step")
        return parts

    def _redraw(self, batch: Batch) -> Batch:
        """Return as many examples from the ring of the current task, which contains those of ``batch`` too."""
        drawn = self.recall(len(batch.y), self._same) if self.rehearsal else None
        return batch if drawn is None else Batch(drawn[0].x, drawn[0].y, batch.task)

    def _inner_step(self, batch: Batch, is_trainer_step: bool) -> Parts:
        """Make a step on theta. With ``is_trainer_step`` the Trainer counts it."""
        learner = self.learner
        with cached_weights(self._tiled):
            loss = learner.loss(learner.net(batch.x, batch.task), batch.y)
            parts = {"task_loss": loss.detach()}
            drawn = self.recall(self.replay_size, self._earlier) if self.gamma else None
            if drawn is not None:
                old, examples = drawn
                outputs = learner.net(old.x, old.task)
                replayed, distilled = (
                    learner.loss(outputs, old.y),
                    self.reg * self._divergence(outputs, examples["soft"]),
                )
                loss = loss + self.gamma * (replayed + distilled)
                parts |= {"replay": replayed.detach(), "distillation": distilled.detach()}
        gradients = torch.autograd.grad(loss, self._theta, allow_unused=True)
        for p, gradient in zip(self._theta, gradients, strict=True):
            p.grad = gradient
        if self.inner_clip is not None:
            nn.utils.clip_grad_value_(self._theta, self.inner_clip)
        optimizer = learner.optimizers() if is_trainer_step else learner.trainer.optimizers[0]
        assert not isinstance(optimizer, list)
        optimizer.step()
        return {"loss": loss.detach(), **parts}

    def _outer_step(self, number: int, anchor: list[Tensor]) -> Parts:
        """Make a step on the calibration, on ``number`` old examples."""
        drawn = self.recall(number, self._earlier)
        if drawn is None:
            return {}
        old, examples = drawn
        reg = self.reg if "b" in self.terms else 0.0
        with cached_weights(self._weights) as weights:
            divergence = self._divergence(self.learner.net(old.x, old.task), examples["soft"])
        gradients = torch.autograd.grad(divergence, [*weights, *self._features], allow_unused=True)
        steps: list[tuple[Tensor, Tensor]] = []
        value = divergence.new_zeros(())
        with torch.no_grad():
            for k, (layer, g) in enumerate(zip(self._weights, gradients, strict=False)):
                if g is not None:
                    if self._has_consolidation:
                        part, g = consolidation(g, weights[k], anchor[k], self.lam, reg)
                        value += part
                    else:
                        g = g * reg
                    steps.append((layer.calibration.psi, layer.psi_gradient(g)))  # type: ignore[arg-type]
            for p, g in zip(self._features, gradients[len(weights) :], strict=True):
                if g is not None and reg:
                    steps.append((p, reg * g))
            for p, g in steps:
                if self.outer_clip is not None:
                    g.clamp_(-self.outer_clip, self.outer_clip)
                p.sub_(g, alpha=self.outer_lr)
        return {"consolidation": value, "outer_distillation": reg * divergence.detach()}

    def _weights_now(self) -> list[Tensor]:
        """Return theta~ if term a needs it, else an empty list."""
        with torch.no_grad():
            return [layer.weight for layer in self._weights] if self._has_consolidation else []

    def _divergence(self, outputs: Tensor, soft: Tensor) -> Tensor:
        return divergence(self.learner.logits(outputs), soft, self.temperature, self.kl)

    def _step_schedulers(self, interval: str) -> None:
        """Step the schedulers of ``interval``, which Lightning does not do in manual optimisation."""
        for config in self.learner.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                raise StrategyError(
                    "scheduler=ReduceLROnPlateau needs a logged metric, which NCCL does not have. Use another scheduler"
                )
            if config.interval == interval:
                config.scheduler.step()


def consolidation(g: Tensor, weight: Tensor, anchor: Tensor, lam: float, reg: float) -> tuple[Tensor, Tensor]:
    """Return term a and the gradient of term a + reg * KL with respect to ``weight``.

    Let g = dKL/dweight and s = g * (weight - anchor). Term a is lam/2 * sum g^2 (weight - anchor)^2 = lam/2 * sum s^2, and its
    gradient with g^2 constant is lam * g * s.
    """
    s = (weight - anchor).mul_(g)
    value = 0.5 * lam * torch.linalg.vecdot(s.flatten(), s.flatten())
    return value, s.mul_(lam).add_(reg).mul_(g)
