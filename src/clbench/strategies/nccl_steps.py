"""What NCCL does with a batch: steps on theta, then steps on what calibrates it."""

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
"""Values of a step, by the name they are logged under."""


class TwoLevels(RehearsalStrategy):
    """The steps of ``NCCL``, whose options these are, on the tensors that it gathers when a fit begins.

    Attributes:
        _theta: parameters of the inner level; _features: scale and shift; _weights: layers with a psi, and of them _tiled
            those whose theta~ is formed. All of the net that is trained.
        _earlier, _same: which slots of the memory hold examples of earlier tasks, and of the task that is learned.
        _at_start: theta~ when the task began.
        _consolidates: whether term a has anything to hold.
    """

    lam: float
    gamma: float
    reg: float
    drawn: int
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
    _consolidates: bool

    def update(self, batch: Batch) -> Parts:
        """Learn from one batch: inner steps on theta, then outer steps on the calibration."""
        if self.rehearsal:
            self.remember(batch)
        anchor = self._at_start
        for step in range(self.inner_steps):
            last = step == self.inner_steps - 1
            if (self.anchor == "batch" and step == 0) or (self.anchor == "last_inner" and last):
                anchor = self._weights_now()
            parts = self._inner_step(self._again(batch) if step else batch, last)
        if self.terms and (self._weights or self._features):
            for _ in range(self.outer_steps):
                parts |= self._outer_step(len(batch.y), anchor)
        self._step_schedulers("step")
        return parts

    def _again(self, batch: Batch) -> Batch:
        """As many examples of the ring of the same task, which has those of the batch too."""
        recalled = self.recall(len(batch.y), self._same) if self.rehearsal else None
        return batch if recalled is None else Batch(recalled[0].x, recalled[0].y, batch.task)

    def _inner_step(self, batch: Batch, counts: bool) -> Parts:
        """A step on theta; ``counts``: as a step of the Trainer."""
        learner = self.learner
        with cached_weights(self._tiled):
            loss = learner.loss(learner.net(batch.x, batch.task), batch.y)
            parts = {"task_loss": loss.detach()}
            recalled = self.recall(self.drawn, self._earlier) if self.gamma else None
            if recalled is not None:
                old, examples = recalled
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
        optimizer = learner.optimizers() if counts else learner.trainer.optimizers[0]
        assert not isinstance(optimizer, list)
        optimizer.step()
        return {"loss": loss.detach(), **parts}

    def _outer_step(self, number: int, anchor: list[Tensor]) -> Parts:
        """A step on the calibration, on ``number`` old examples."""
        recalled = self.recall(number, self._earlier)
        if recalled is None:
            return {}
        old, examples = recalled
        reg = self.reg if "b" in self.terms else 0.0
        with cached_weights(self._weights) as weights:
            divergence = self._divergence(self.learner.net(old.x, old.task), examples["soft"])
        gradients = torch.autograd.grad(divergence, [*weights, *self._features], allow_unused=True)
        by: list[tuple[Tensor, Tensor]] = []
        value = divergence.new_zeros(())
        with torch.no_grad():
            for k, (layer, g) in enumerate(zip(self._weights, gradients, strict=False)):
                if g is not None:
                    if self._consolidates:
                        part, g = consolidated(g, weights[k], anchor[k], self.lam, reg)
                        value += part
                    else:
                        g = g * reg
                    by.append((layer.calibration.psi, layer.psi_gradient(g)))  # type: ignore[arg-type]
            for p, g in zip(self._features, gradients[len(weights) :], strict=True):
                if g is not None and reg:
                    by.append((p, reg * g))
            for p, g in by:
                if self.outer_clip is not None:
                    g.clamp_(-self.outer_clip, self.outer_clip)
                p.sub_(g, alpha=self.outer_lr)
        return {"consolidation": value, "outer_distillation": reg * divergence.detach()}

    def _weights_now(self) -> list[Tensor]:
        """theta~, where term a needs it."""
        with torch.no_grad():
            return [layer.weight for layer in self._weights] if self._consolidates else []

    def _divergence(self, outputs: Tensor, soft: Tensor) -> Tensor:
        return divergence(self.learner.logits(outputs), soft, self.temperature, self.kl)

    def _step_schedulers(self, interval: str) -> None:
        """Lightning leaves them to manual optimisation."""
        for config in self.learner.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                raise StrategyError(
                    "ReduceLROnPlateau follows a logged metric, which the steps of NCCL do not have. Use another scheduler"
                )
            if config.interval == interval:
                config.scheduler.step()


def consolidated(g: Tensor, weight: Tensor, anchor: Tensor, lam: float, reg: float) -> tuple[Tensor, Tensor]:
    """Term a, lam/2 * sum g^2 (weight - anchor)^2, and the gradient of it and of reg * KL, where g = dKL/dweight.

    With s = g * (weight - anchor), term a is lam/2 * sum s^2 and its gradient, g^2 held constant, lam * g * s.
    """
    s = (weight - anchor).mul_(g)
    value = 0.5 * lam * torch.linalg.vecdot(s.flatten(), s.flatten())
    return value, s.mul_(lam).add_(reg).mul_(g)
