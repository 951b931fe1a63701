"""NCCL: neuron calibration for online continual learning."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from clbench.calibration import CalibratedNeurons, calibrate, calibrated, calibration, held_weights, layers
from clbench.data import Batch, TaskSequence
from clbench.distillation import divergence, padded, softened
from clbench.errors import ConfigError
from clbench.importance import undisturbed
from clbench.learner import Learner, in_two_columns
from clbench.memory import Ring
from clbench.nets.resnet import BasicBlock
from clbench.params import trainable
from clbench.strategies.options import one_of, positive, strength, whole
from clbench.strategies.rehearsal import RehearsalStrategy
from clbench.strategies.selection import Patterns, selected

Parts = dict[str, Tensor]
"""Values of a step, by the name they are logged under."""


class NCCL(RehearsalStrategy):
    """Neuron calibration (Yin, Yang and Li 2021): two levels, the weights theta and what calibrates them.

    Every layer computes with theta~ = tile(psi) * theta and rescales its features (``clbench.calibration``). A batch (x, y)
    of task t is learned in ``inner_steps`` steps on theta, the calibration held,

        theta <- optimiser step on  CE(x, y) + gamma * ( CE(M) + reg * KL(M) ),   M a batch of earlier tasks,

    and from the second task on ``outer_steps`` steps on psi, scale and shift, theta held,

        - outer_lr * gradient of  lam/2 * sum_i F_i (theta~_i - anchor_i)^2  +  reg * KL(M').
                                  term a: consolidation                        term b: distillation

    F = (dKL/dtheta~)^2 on the same M', a constant. KL compares softmax(z / temperature) with what the same net gave for
    the example when its task ended, in evaluation mode; this is kept and never refreshed. The memory is a ring of the
    last ``memory`` examples of each task. Steps after the first on the same batch are on as many examples of the ring of t.

    What is known of the paper and what is ours stands in docs/nccl.md, option by option.

    Args:
        lam: strength of term a, >= 0; 1 is the weight of the paper.
        memory: examples kept of each task, at least 1.
        replay: examples of earlier tasks in an inner step, at least 1.
        inner_steps: steps on theta per batch, at least 1.
        outer_steps: steps on the calibration per batch, each on as many old examples as the batch has, at least 1.
        outer_lr: rate of the steps on the calibration, > 0; that of theta is the optimiser's.
        temperature: of the softened outputs, > 0.
        gamma: strength of the old examples in the inner steps, >= 0; 0 does not draw any.
        reg: strength of the distillation, inner and outer, >= 0; beta in the paper.
        inner_clip, outer_clip: largest absolute value of an entry of the gradient, > 0; None = not clipped.
        anchor: theta~ before the first inner step on the ``batch``, before its ``last_inner`` step, or when the ``task`` began.
        kl: ``mean`` over examples and outputs, as nn.KLDivLoss() of the code; or ``batchmean``, over examples only.
        terms: of the outer objective, of ``a`` and ``b``.
        wcm, fcm: calibrate weights, features.
        rehearsal: keep examples; without them nothing is replayed and the calibration is not trained.
        include, exclude: patterns on the names of the weights that are calibrated, see ``selected``; None = the 3x3
            convolutions in the blocks of our reduced ResNets, every Linear and convolutional layer of other nets.
        seed: of the examples drawn.

    Raises:
        ConfigError: a value outside its range; when a fit begins, what manual optimisation cannot do.
    """

    def __init__(
        self,
        lam: float = 1.0,
        memory: int = 50,
        replay: int = 64,
        inner_steps: int = 2,
        outer_steps: int = 1,
        outer_lr: float = 0.1,
        temperature: float = 5.0,
        gamma: float = 1.0,
        reg: float = 1.0,
        inner_clip: float | None = None,
        outer_clip: float | None = 1.0,
        anchor: str = "batch",
        kl: str = "mean",
        terms: Sequence[str] = ("a", "b"),
        wcm: bool = True,
        fcm: bool = True,
        rehearsal: bool = True,
        include: Patterns = None,
        exclude: Patterns = None,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, None, "ring", seed)
        self.lam = strength("lam", lam)
        self.gamma = strength("strategy.gamma", gamma)
        self.reg = strength("strategy.reg", reg)
        self.drawn = whole("strategy.replay", replay, "the number of examples drawn")
        self.inner_steps = whole("strategy.inner_steps", inner_steps)
        self.outer_steps = whole("strategy.outer_steps", outer_steps)
        self.outer_lr = positive("strategy.outer_lr", outer_lr, "the rate of the steps on the calibration")
        self.temperature = positive("strategy.temperature", temperature, "a temperature", "5 here")
        self.inner_clip, self.outer_clip = (
            None
            if clip is None
            else positive(f"strategy.{level}_clip", clip, "the largest entry of a gradient, or null,")
            for level, clip in (("inner", inner_clip), ("outer", outer_clip))
        )
        self.anchor = one_of("strategy.anchor", anchor, ("batch", "last_inner", "task"))
        self.kl = one_of("strategy.kl", kl, ("mean", "batchmean"))
        if isinstance(terms, str) or not isinstance(terms, Sequence) or not set(terms) <= {"a", "b"}:
            raise ConfigError(f"strategy.terms={terms}: it is a list of a (consolidation) and b (distillation)")
        self.terms = frozenset(terms)
        self.wcm = wcm
        self.fcm = fcm
        self.rehearsal = rehearsal
        self.include = include
        self.exclude = exclude
        self.examples = 0
        self._at_start: list[Tensor] = []

    # --- a step ------------------------------------------------------------------------------------------------------

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
        with held_weights(self._tiled):
            loss = learner.loss(learner.net(batch.x, batch.task), batch.y)
            parts = {"task_loss": loss.detach()}
            recalled = self.recall(self.drawn, self._earlier) if self.gamma else None
            if recalled is not None:
                old, rows = recalled
                outputs = learner.net(old.x, old.task)
                replayed, distilled = learner.loss(outputs, old.y), self.reg * self._divergence(outputs, rows["soft"])
                loss = loss + self.gamma * (replayed + distilled)
                parts |= {"replay": replayed.detach(), "distillation": distilled.detach()}
        gradients = torch.autograd.grad(loss, self._theta, allow_unused=True)
        for p, gradient in zip(self._theta, gradients, strict=True):
            p.grad = gradient
        if self.inner_clip is not None:
            nn.utils.clip_grad_value_(self._theta, self.inner_clip)
        (learner.optimizers() if counts else learner.trainer.optimizers[0]).step()
        return {"loss": loss.detach(), **parts}

    def _outer_step(self, number: int, anchor: list[Tensor]) -> Parts:
        """A step on the calibration, on ``number`` old examples."""
        recalled = self.recall(number, self._earlier)
        if recalled is None:
            return {}
        old, rows = recalled
        reg = self.reg if "b" in self.terms else 0.0
        with held_weights(self._weights) as weights:
            divergence = self._divergence(self.learner.net(old.x, old.task), rows["soft"])
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
        return divergence(in_two_columns(outputs), soft, self.temperature, self.kl)

    def _step_schedulers(self, interval: str) -> None:
        """Lightning leaves them to manual optimisation."""
        for config in self.learner.trainer.lr_scheduler_configs:
            if config.interval == interval:
                config.scheduler.step()

    # --- Lightning ---------------------------------------------------------------------------------------------------

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.examples = 0
        self._calibrate(learner)

    def _calibrate(self, learner: Learner) -> None:
        if (self.wcm or self.fcm) and not calibration(learner.net):
            calibrate(learner.net, self._chosen(learner), weights=self.wcm, features=self.fcm)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or not isinstance(pl_module, Learner):
            return
        self._calibrate(pl_module)
        plugin = trainer.precision_plugin
        if pl_module.compiled:
            raise ConfigError(
                "compile=true compiles the loss of a step, but NCCL makes its own steps: use compile=false"
            )
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: NCCL takes its steps on every batch; "
                "leave it at 1 and raise batch_size"
            )
        if trainer.gradient_clip_val is not None:
            raise ConfigError(
                f"trainer.gradient_clip_val={trainer.gradient_clip_val}: NCCL clips by value: use strategy.inner_clip and "
                "strategy.outer_clip"
            )
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            raise ConfigError(
                "NCCL does not scale its losses, as 16-mixed precision needs: use trainer.precision=bf16-mixed"
            )

    def first_task(self, options: dict[str, Any]) -> dict[str, Any]:
        """Not what is done with examples of earlier tasks, outer steps among it: there are none."""
        later = ("lam", "replay", "outer_steps", "outer_lr", "temperature", "gamma", "reg", "outer_clip", "kl", "terms")
        return {name: value for name, value in options.items() if name not in later}

    def on_train_start(self, trainer: L.Trainer, pl_module: Learner) -> None:
        super().on_train_start(trainer, pl_module)
        assert isinstance(self.memory, Ring)
        scenario, net = self.sequence.scenario, pl_module.net
        self._width = max(stop - start for start, stop in scenario.slices(self.sequence.sizes))
        self._earlier, self._same = self.memory.before(self._index), self.memory.of(self._index)
        parts = calibration(net)
        self._weights = [layer for layer in calibrated(net).values() if layer.calibration.psi is not None]
        self._tiled = [layer for layer in self._weights if not isinstance(layer, CalibratedNeurons)]
        self._consolidates = "a" in self.terms and self.lam > 0 and self._earlier.any().item() and self.rehearsal
        self._features = [p for name, p in parts.items() if not name.endswith("psi")]
        own = {id(p) for p in parts.values()}
        self._theta = [p for p in trainable(pl_module).values() if id(p) not in own]
        if trainer.ckpt_path is None:
            self._at_start = self._weights_now()
        self._at_start = [weight.to(pl_module.device) for weight in self._at_start]
        pl_module.update = self.update
        pl_module.automatic_optimization = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._step_schedulers("epoch")

    def on_train_end(self, trainer: L.Trainer, pl_module: Learner) -> None:
        """Keep the softened outputs of the examples of the task."""
        began = perf_counter()
        assert self.memory is not None
        slots = (self.memory.filled & self._same).nonzero()[:, 0]
        self.examples = len(slots)
        if self.examples:
            x = self.memory.rows["x"]
            x = x[slots.to(x.device)]
            with undisturbed(pl_module), torch.no_grad():
                outputs = torch.cat([pl_module.net(part, self._index) for part in x.split(1000)])
            soft = softened(in_two_columns(outputs), self.temperature)
            if "soft" not in self.memory.rows:
                self.memory.rows["soft"] = soft.new_zeros(self.memory.slots, self._width)
            self.memory.write({"soft": padded(soft, self._width)}, slots.tolist())
        self.seconds += perf_counter() - began

    def teardown(self, trainer: L.Trainer, pl_module: Learner, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        pl_module.automatic_optimization = True

    def state_dict(self) -> dict[str, Any]:
        within = {"at_start": [weight.clone() for weight in self._at_start]} if self.anchor == "task" else {}
        return {**super().state_dict(), **within}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._at_start = state_dict.get("at_start", [])

    def cost(self) -> dict[str, float]:
        return {**super().cost(), "examples": self.examples}

    def diagnosis(self, trainer: L.Trainer) -> str:
        levels = f"lower optimizer.make.lr, strategy.outer_lr={self.outer_lr:g} or lam={self.lam:g}"
        return f"{levels}, or clip with strategy.inner_clip"

    def _chosen(self, learner: Learner) -> list[str]:
        """Names of the layers of the net that are calibrated."""
        held = selected(learner, self.include, self.exclude)
        names = [name for name in layers(learner.net) if f"net.{name}.weight" in held]
        blocks = {name for name, part in learner.net.named_modules() if isinstance(part, BasicBlock)}
        if self.include is None and blocks:
            names = [name for name in names if name.rpartition(".")[0] in blocks]
        if not names:
            raise ConfigError(
                f"strategy.include={self.include} with exclude={self.exclude} names no weight of a Linear or convolutional "
                "layer: give patterns such as 'Linear.weight'"
            )
        return names


def consolidated(g: Tensor, weight: Tensor, anchor: Tensor, lam: float, reg: float) -> tuple[Tensor, Tensor]:
    """Term a, lam/2 * sum g^2 (weight - anchor)^2, and the gradient of it and of reg * KL, where g = dKL/dweight.

    With s = g * (weight - anchor), term a is lam/2 * sum s^2 and its gradient, g^2 held constant, lam * g * s.
    """
    s = (weight - anchor).mul_(g)
    value = 0.5 * lam * torch.linalg.vecdot(s.flatten(), s.flatten())
    return value, s.mul_(lam).add_(reg).mul_(g)
