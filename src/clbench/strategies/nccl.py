"""NCCL: neuron calibration for online continual learning."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from clbench.data import TaskSequence
from clbench.data.targets import LABEL
from clbench.errors import StrategyError, expected
from clbench.importance import preserve_state
from clbench.learner import Learner, learner_of
from clbench.nets.calibration import CalibratedNeurons, calibrate, calibrated, calibration, layers
from clbench.nets.resnet import BasicBlock
from clbench.params import trainable
from clbench.strategies.argument_checks import check_choice, check_flag, check_integer, check_positive, check_strength
from clbench.strategies.distillation import pad_outputs, soften
from clbench.strategies.memory import Ring
from clbench.strategies.nccl_steps import TwoLevels
from clbench.strategies.patterns import Patterns, selected


class NCCL(TwoLevels):
    """Neuron calibration (Yin, Yang and Li 2021): train the weights theta, and parameters that rescale weights and features.

    Every layer computes with theta~ = tile(psi) * theta and rescales its features (``clbench.nets.calibration``). A batch (x, y)
    of task t is learned in ``inner_steps`` steps on theta with the calibration fixed,

        theta <- optimiser step on  CE(x, y) + gamma * ( CE(M) + reg * KL(M) ),   where M is a batch of earlier tasks,

    and, from the second task, in ``outer_steps`` steps on psi, scale and shift with theta fixed,

        - outer_lr * gradient of  lam/2 * sum_i F_i (theta~_i - anchor_i)^2  +  reg * KL(M').
                                  term a: consolidation                        term b: distillation

    F = (dKL/dtheta~)^2 on the same M', taken as a constant. KL is the divergence of softmax(z / temperature) from a target. The
    target of an example is this softmax at the end of the example's task, in evaluation mode. It is stored and never updated.
    The memory is a ring of the last ``memory`` examples of each task. Only the first inner step uses the batch itself. The others
    use a batch of the same size, sampled from the ring of task t.

    docs/nccl.md lists, option by option, what the paper specifies and what is our choice.

    Args:
        lam: Strength of term a, >= 0. 1 is the weight in the paper.
        memory: Number of examples stored per task, at least 1.
        replay: Examples of earlier tasks in an inner step, at least 1.
        inner_steps: Steps on theta per batch, at least 1.
        outer_steps: Steps on the calibration per batch, at least 1. Each uses as many old examples as the batch has.
        outer_lr: Learning rate of the outer steps, > 0. The learning rate of theta is that of the optimiser.
        temperature: Temperature of the softmax in KL, > 0.
        gamma: Strength of the old examples in the inner steps, >= 0. With 0 the inner steps use none.
        reg: Strength of the distillation in inner and outer steps, >= 0. The paper calls it beta.
        inner_clip, outer_clip: Largest absolute value of a gradient entry, > 0. None does not clip.
        anchor: Time at which theta~ is taken as the anchor of term a: before the first inner step on the batch (``batch``),
            before its last inner step (``last_inner``), or at the start of the task (``task``).
        kl: ``mean`` averages over examples and outputs, as nn.KLDivLoss() in the published code does. ``batchmean`` averages
            over examples only.
        terms: Terms of the outer objective, among ``a`` and ``b``.
        wcm, fcm: Whether to calibrate weights and features.
        rehearsal: Whether to store examples. Without them, nothing is replayed and the calibration is not trained.
        include, exclude: Patterns on the names of the weights to calibrate, see ``selected``. None selects the 3x3 convolutions
            in the blocks of our reduced ResNets, and all Linear and convolutional layers of other nets.
        seed: Random seed of the sampling from the memory.

    Raises:
        ConfigError: A value is out of range. Also raised at the start of a fit if an option of the Trainer is not supported.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0", "optimizer=sgd"]))
        >>> nccl = NCCL(memory=2, replay=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[nccl]).fit(learner, datamodule=task)
        >>> nccl.memory.examples["soft"].shape  # stored targets of the distillation
        torch.Size([4, 2])
    """

    shares_first_task = (
        *("memory", "inner_steps", "inner_clip", "anchor", "wcm", "fcm", "rehearsal", "include", "exclude", "seed"),
    )  # the other options act on examples of earlier tasks
    per_process = False
    kinds = (LABEL,)
    learns_new_classes_alone = False

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
        self.lam = check_strength("lam", lam)
        self.gamma = check_strength("gamma", gamma)
        self.reg = check_strength("reg", reg)
        self.replay_size = check_integer("replay", replay)
        self.inner_steps = check_integer("inner_steps", inner_steps)
        self.outer_steps = check_integer("outer_steps", outer_steps)
        self.outer_lr = check_positive("outer_lr", outer_lr)
        self.temperature = check_positive("temperature", temperature, "The default is 5.")
        self.inner_clip, self.outer_clip = (
            None if clip is None else check_positive(name, clip, "None does not clip.")
            for name, clip in (("inner_clip", inner_clip), ("outer_clip", outer_clip))
        )
        self.anchor = check_choice("anchor", anchor, ("batch", "last_inner", "task"))
        self.kl = check_choice("kl", kl, ("mean", "batchmean"))
        if isinstance(terms, str) or not isinstance(terms, Sequence) or not set(terms) <= {"a", "b"}:
            raise StrategyError(expected("terms", terms, "a list of a (consolidation) and b (distillation)"))
        self.terms = frozenset(terms)
        self.wcm = check_flag("wcm", wcm)
        self.fcm = check_flag("fcm", fcm)
        self.rehearsal = check_flag("rehearsal", rehearsal)
        self.include = include
        self.exclude = exclude
        self.examples = 0
        self._at_start: list[Tensor] = []

    # --- Lightning ---------------------------------------------------------------------------------------------------

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.examples = 0
        self._calibrate(learner)

    def _calibrate(self, learner: Learner) -> None:
        if (self.wcm or self.fcm) and not calibration(learner.net):
            calibrate(
                learner.net, chosen_layers(learner, self.include, self.exclude), weights=self.wcm, features=self.fcm
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or not isinstance(pl_module, Learner):
            return
        self._calibrate(pl_module)
        plugin = trainer.precision_plugin
        if pl_module.compiled:
            raise StrategyError("compile=true: expected false, because NCCL makes its own steps. Use compile=false")
        if trainer.accumulate_grad_batches != 1:
            raise StrategyError(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: expected 1, because NCCL makes its steps on "
                "every batch. Use 1 and a larger batch_size"
            )
        if trainer.gradient_clip_val is not None:
            raise StrategyError(
                f"trainer.gradient_clip_val={trainer.gradient_clip_val}: expected null, because NCCL clips by value. Use "
                "inner_clip=... and outer_clip=..."
            )
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            raise StrategyError(
                "trainer.precision=16-mixed: expected another precision, because NCCL does not scale its losses. Use "
                "trainer.precision=bf16-mixed"
            )

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int | None:
        return min(self.replay_size, batch_size, self.each) if self.rehearsal else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        assert isinstance(self.memory, Ring)
        scenario, net = self.sequence.scenario, learner.net
        self._width = max(stop - start for start, stop in scenario.slices(self.sequence.sizes))
        self._earlier, self._same = self.memory.slots_before(self._index), self.memory.slots_of(self._index)
        parts = calibration(net)
        self._weights = [layer for layer in calibrated(net).values() if layer.calibration.psi is not None]
        self._tiled = [layer for layer in self._weights if not isinstance(layer, CalibratedNeurons)]
        self._has_consolidation = "a" in self.terms and self.lam > 0 and self.rehearsal and bool(self._earlier.any())
        self._features = [p for name, p in parts.items() if not name.endswith("psi")]
        calibrating = {id(p) for p in parts.values()}
        self._theta = [p for p in trainable(learner).values() if id(p) not in calibrating]
        if trainer.ckpt_path is None:
            self._at_start = self._weights_now()
        self._at_start = [weight.to(learner.device) for weight in self._at_start]
        learner.update = self.update
        learner.automatic_optimization = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._step_schedulers("epoch")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the softened outputs of the stored examples of the task, as targets of the distillation."""
        learner = learner_of(pl_module)
        start = perf_counter()
        assert self.memory is not None
        slots = (self.memory.filled & self._same).nonzero()[:, 0]
        self.examples = len(slots)
        if self.examples:
            x = self.memory.examples["x"]
            x = x[slots.to(x.device)]
            with preserve_state(learner), torch.no_grad():
                outputs = torch.cat([learner.net(part, self._index) for part in x.split(1000)])
            soft = soften(learner.logits(outputs), self.temperature)
            if "soft" not in self.memory.examples:
                self.memory.examples["soft"] = soft.new_zeros(self.memory.slots, self._width)
            self.memory.write({"soft": pad_outputs(soft, self._width)}, slots.tolist())
        self.seconds += perf_counter() - start

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        learner = learner_of(pl_module)
        super().teardown(trainer, pl_module, stage)
        learner.automatic_optimization = True

    def state_dict(self) -> dict[str, Any]:
        during_task = {"at_start": [weight.clone() for weight in self._at_start]} if self.anchor == "task" else {}
        return {**super().state_dict(), **during_task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._at_start = state_dict.get("at_start", [])

    def cost(self) -> dict[str, float]:
        return {**super().cost(), "examples": self.examples}

    def diagnosis(self, trainer: L.Trainer) -> str:
        return f"the steps are too large. Lower lr, outer_lr={self.outer_lr:g} or lam={self.lam:g}, or clip with inner_clip=..."


def chosen_layers(learner: Learner, include: Patterns, exclude: Patterns) -> list[str]:
    """Return the names of the layers to calibrate.

    Raises:
        ConfigError: No layer matches the patterns.
    """
    matching = selected(learner, include, exclude)
    names = [name for name in layers(learner.net) if f"net.{name}.weight" in matching]
    blocks = {name for name, part in learner.net.named_modules() if isinstance(part, BasicBlock)}
    if include is None and blocks:
        names = [name for name in names if name.rpartition(".")[0] in blocks]
    if not names:
        raise StrategyError(
            f"include={include} with exclude={exclude}: expected patterns that match the weight of a Linear or convolutional "
            "layer. Try 'Linear.weight'"
        )
    return names
