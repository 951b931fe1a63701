"""GPM: weights move only where they do not change the outputs of layers for inputs of earlier tasks."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from clbench.data import task_of
from clbench.errors import StrategyError
from clbench.importance.batching import subsample
from clbench.importance.preserve_state import preserve_state
from clbench.learner import Learner, learner_of
from clbench.nets import MultiHead
from clbench.params import Params, in_float64, size_in_bytes, snapshot, trainable, widen
from clbench.strategies.argument_checks import check_fraction, check_integer, check_integer_or_none
from clbench.strategies.examples import transferred
from clbench.strategies.fit import place_last
from clbench.strategies.input_space import Layer, compress, extend, layers_in, remove, rows_of
from clbench.strategies.learner_strategy import LearnerStrategy


class GPM(LearnerStrategy):
    """Gradient projection memory (Saha, Garg and Roy 2021, "Gradient projection memory for continual learning").

    When a task ends, the inputs of every linear and convolutional layer for ``samples`` examples are the rows of a matrix R. The
    basis M of the layer, with orthonormal columns, gets the fewest singular vectors of what it leaves of R, so that
    ||R M||^2 >= threshold ||R||^2 (eq. 5 and 9). In later tasks, the gradient G of the weights becomes

        G - G M M^T  (eq. 6 and 7), so that G x = 0 for every input x in the space of M.

    Where we differ from the paper:

    - The paper uses SGD. Weight decay, and the factors of Adam, turn a projected gradient into a step that is not projected.
      Therefore the step of the optimiser is projected in the same way. For SGD without weight decay this changes nothing.
    - The nets of the paper have no biases. Here a bias is a column of the weights, whose input is 1.
    - All other parameters that a task has used stay as they are after it: scales and shifts of norm layers (as in the authors'
      code), embeddings, weights that are used by several layers, and heads of earlier tasks.

    Args:
        threshold: Share of the squares of the inputs that the basis explains, in [0, 1]. 1 changes no output for the
            examples that were measured, except by rounding. The paper uses 0.95 to 0.99.
        threshold_step: Added to ``threshold`` with each task, at least 0. The threshold is at most 1.
        samples: Largest number of training examples of a task whose inputs are measured. None measures all.
        seed: Random seed of the choice of the examples.

    Attributes:
        bases: Bases M by the name of the layer in the Learner. Each is (D, k), with D inputs of a neuron, 1 more with a bias.
        fixed: Names of the other parameters that earlier tasks have used.
        tasks: Number of tasks that have been measured.

    Raises:
        ConfigError: An argument is out of range. When a fit starts, the net has BatchNorm whose statistics change after the
            first task. See also ``LearnerStrategy``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0", "net.hidden=[8]"]))
        >>> gpm = GPM(threshold=1.0)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[gpm]).fit(learner, datamodule=task)
        >>> gpm.bases["net.body.1"].shape  # two inputs and the bias
        torch.Size([3, 3])
    """

    shares_first_task = True
    needs_labels = False
    per_process = False

    def __init__(
        self, threshold: float = 0.97, threshold_step: float = 0.003, samples: int | None = 125, seed: int = 0
    ) -> None:
        self.threshold = check_fraction("threshold", threshold)
        self.threshold_step = check_fraction("threshold_step", threshold_step)
        self.samples = check_integer_or_none("samples", samples)
        self.seed = check_integer("seed", seed, least=0)
        self._reset()

    def _reset(self) -> None:
        self.bases: Params = {}
        self.fixed: set[str] = set()
        self.tasks = self.examples = 0
        self._handles: list[Any] = []
        self._fixed: list[Tensor] = []
        self._moving: list[tuple[list[Tensor], Tensor]] = []  # weight and perhaps bias of a layer, and its basis
        self._old: list[list[Tensor]] = []  # the same weights before a step

    def attach(self, learner: Learner, sequence: Any) -> None:
        super().attach(learner, sequence)
        self._reset()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        place_last(self, trainer)
        learner = learner_of(pl_module)
        if learner.bn == "train" and any(isinstance(part, _BatchNorm) for part in learner.modules()):
            raise StrategyError(
                f"bn={learner.bn}: expected freeze_after_first, because statistics that follow later tasks change the outputs "
                "for earlier ones. Use bn=freeze_after_first, or a net without BatchNorm"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fixed = [p for name, p in trainable(pl_module).items() if name in self.fixed]
        self._moving = []
        for name, layer in layers_in(pl_module).items():
            if name in self.bases:
                self._moving.append(([*layer.parameters()], self.bases[name].to(layer.weight.device)))
        for optimizer in trainer.optimizers if self._moving else ():
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        for p in self._fixed:
            p.grad = None
        for params, basis in self._moving:
            gradient = [p.grad for p in params if p.grad is not None]
            if gradient:
                remove(gradient, gradient, basis)

    def _before_step(self, *_: Any) -> None:
        self._old = [[p.detach().clone() for p in params] for params, _ in self._moving]

    def _after_step(self, *_: Any) -> None:
        with torch.no_grad():
            for (params, basis), old in zip(self._moving, self._old, strict=True):
                remove(params, [p - before for p, before in zip(params, old, strict=True)], basis)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Extend the bases by the inputs of the layers for examples of the task, at the weights that the fit leaves."""
        start, task = perf_counter(), task_of(trainer)
        threshold = min(1.0, self.threshold + self.tasks * self.threshold_step)
        self.examples = min(self.samples or task.examples, task.examples)
        batches = transferred(pl_module, subsample(task.importance_dataloader(), self.examples, self.seed))
        with preserve_state(pl_module):
            matrices, used = measure_inputs(learner_of(pl_module), batches)
        layers, params = layers_in(pl_module), trainable(pl_module)
        for name, (matrix, precision) in matrices.items():
            basis = extend(self.bases.get(name), matrix, threshold, precision)
            self.bases[name] = basis.to(widen(layers[name].weight))
        moving = {p for name in self.bases for p in layers[name].parameters()}
        self.fixed |= {name for name in used if params[name] not in moving}
        self.tasks += 1
        self.seconds += perf_counter() - start

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        for handle in self._handles:
            handle.remove()
        self._handles, self._fixed, self._moving, self._old = [], [], [], []

    def cost(self) -> dict[str, float]:
        return {"examples": self.examples, "bytes": size_in_bytes(self.bases)}

    def state_dict(self) -> dict[str, Any]:
        return {"bases": snapshot(self.bases), "fixed": sorted(self.fixed), "tasks": self.tasks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bases, self.fixed = snapshot(state_dict["bases"]), set(state_dict["fixed"])
        self.tasks = state_dict["tasks"]


def measure_inputs(learner: Learner, batches: Any) -> tuple[dict[str, tuple[Tensor, float]], set[str]]:
    """Return what a pass over ``batches`` shows.

    Returns:
        For each layer that the batches use, except heads of one task, a matrix with the R^T R of its inputs R in float64, and
        the relative rounding error of the inputs; and the names of all parameters that the first batch uses.
    """
    found: dict[str, tuple[Tensor, float]] = {}
    heads = {id(part) for m in learner.modules() if isinstance(m, MultiHead) for part in m.modules()}

    def add(name: str, layer: Layer, x: Tensor) -> None:
        rows = rows_of(layer, widen(x.detach()))
        before = found[name][0] if name in found else None
        found[name] = compress(before, in_float64(rows)), torch.finfo(rows.dtype).eps

    handles = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: add(name, layer, args[0]))
        for name, layer in layers_in(learner).items()
        if id(layer) not in heads
    ]
    used: set[str] = set()
    params = trainable(learner)
    try:
        for batch in batches:
            outputs = learner(batch.x, batch.task)
            if not used:
                gradients = torch.autograd.grad(outputs.sum(), list(params.values()), allow_unused=True)
                used = {name for name, g in zip(params, gradients, strict=True) if g is not None}
    finally:
        for handle in handles:
            handle.remove()
    return found, used
