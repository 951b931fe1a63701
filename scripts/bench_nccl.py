"""Measure the overhead of an NCCL step over its forward and backward passes. Times both in turn and prints the ratio.

    python scripts/bench_nccl.py [--steps 100] [--threads 1] [--device cpu]

A step is ``NCCL.update`` in a Trainer, with the options of conf/strategy/nccl.yaml: 10 examples, 64 replayed, two inner
steps and one outer step. The first task has no memory yet, so its step is two inner steps of 10. The passes of a step are
counted. The bare passes have the same number, batch sizes, losses and gradients, but no memory, optimizer or consolidation.
They are timed through the calibrated network, as in the step, and through the same network without calibration.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clbench.config.messages import silence_lightning
from clbench.data import Batch, TaskSequence, permute
from clbench.data.scenario import Scenario
from clbench.learner import Learner
from clbench.nets import Net, features_of, mlp, resnet18_reduced
from clbench.nets.calibration import cached_weights, remove
from clbench.strategies import NCCL
from clbench.strategies.distillation import divergence
from clbench.strategies.memory import Examples

NETS: dict[str, tuple[tuple[int, int, int], Callable[..., nn.Module]]] = {
    "MLP 784-256-256-10": ((1, 28, 28), partial(mlp, hidden=(256, 256))),
    "resnet18_reduced, 3x32x32": ((3, 32, 32), resnet18_reduced),
}


class Noise:
    """Data set of random images with ten labels, in the form of torchvision."""

    def __init__(self, shape: tuple[int, int, int], train: bool = True) -> None:
        generator = torch.Generator().manual_seed(int(train))
        number = 2000 if train else 100
        self.data = torch.randint(256, (number, *shape), generator=generator, dtype=torch.uint8)
        self.targets = torch.arange(number).remainder(10).tolist()


class Passes:
    """The forward and backward passes of a step through ``net``, without anything else."""

    def __init__(self, net: nn.Module, strategy: NCCL, calibrated: bool) -> None:
        self.net, self.strategy = net, strategy
        self.layers = strategy._weights if calibrated else []
        self.tiled = strategy._tiled if calibrated else []
        self.features = strategy._features
        self.theta = strategy._theta if calibrated else list(net.parameters())

    def __call__(self, new: Batch, old: Examples | None) -> None:
        for _ in range(self.strategy.inner_steps):
            with cached_weights(self.tiled):
                loss = cross_entropy(self.net(new.x, 0), new.y)
                if old is not None:
                    outputs = self.net(old["x"], 0)
                    loss = loss + cross_entropy(outputs, old["y"]) + self.strategy.reg * self._divergence(outputs, old)
            torch.autograd.grad(loss, self.theta)
        if old is not None:
            some = {name: t[: len(new.y)] for name, t in old.items()}
            with cached_weights(self.layers) as weights:
                loss = self._divergence(self.net(some["x"], 0), some)
            torch.autograd.grad(loss, [*weights, *self.features] if self.layers else self.theta)

    def _divergence(self, outputs: Tensor, old: Examples) -> Tensor:
        return divergence(outputs, old["soft"], self.strategy.temperature)


class Timing(L.Callback):
    """Time each step of the Trainer and the bare passes in turn. The callback must come after the strategy."""

    def __init__(self, strategy: NCCL) -> None:
        self.strategy = strategy
        self.seconds: dict[str, list[float]] = {"step": [], "calibrated": [], "plain": []}
        self.passes = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: Learner) -> None:
        plain = deepcopy(pl_module.net)
        remove(plain)
        bare = {
            "calibrated": Passes(pl_module.net, self.strategy, True),
            "plain": Passes(plain, self.strategy, False),
        }
        self.passes = ""

        def update(batch: Batch) -> dict[str, Tensor]:
            if not self.passes:
                self.passes = counted(pl_module.net, self.strategy, batch)
            parts = self._timed("step", self.strategy.update, batch)
            assert self.strategy.memory is not None
            examples = self.strategy.memory.examples
            number = min(self.strategy.replay_size, self.strategy.each)  # examples of the single earlier task
            old = {name: t[:number] for name, t in examples.items()} if trainer.datamodule.index else None
            for name, run in bare.items():
                self._timed(name, run, batch, old)
            return parts

        pl_module.update = update

    def _timed(self, name: str, do: Callable[..., Any], *arguments: Any) -> Any:
        began = clock()
        result = do(*arguments)
        self.seconds[name].append(clock() - began)
        return result


def counted(net: nn.Module, strategy: NCCL, batch: Batch) -> str:
    """Return the sizes of the forward passes of one step, and the number of its backward passes."""
    sizes: list[int] = []
    handle = net.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    with patch("torch.autograd.grad", wraps=torch.autograd.grad) as backward:
        strategy.update(batch)
    handle.remove()
    return f"forward on {' + '.join(map(str, sizes))}, {backward.call_count} backward"


def clock() -> float:
    """Return wall-clock seconds after the GPU has finished, or processor seconds without a GPU, which exclude other programs."""
    if not torch.cuda.is_available():
        return process_time()
    torch.cuda.synchronize()
    return perf_counter()


def main() -> None:
    """Time both networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps timed in each task (default 100)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--device", default="cpu", help="Lightning's accelerator (default cpu)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    silence_lightning()
    print(f"median of {args.steps} steps, ms; ratio: median over the steps of step / passes{'':17}step  passes  ratio")
    for name, (shape, body) in NETS.items():
        torch.manual_seed(0)
        scenario = Scenario("domain", head="single")
        sequence = TaskSequence(partial(Noise, shape), permute, 2, scenario, batch_size=10, validation=0.0)
        made = body(shape)
        learner = Learner(
            Net(made, scenario.build_head(features_of(made, shape), sequence.sizes)),
            partial(torch.optim.SGD, lr=0.001),
        )
        strategy = NCCL()
        for index, task in enumerate(sequence):
            timing = Timing(strategy)
            trainer = L.Trainer(
                accelerator=args.device,
                devices=1,
                max_steps=args.steps,
                callbacks=[strategy, timing],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(learner, datamodule=task)
            print(f"{name}, {'later' if index else 'first'} task: {timing.passes}")
            step = timing.seconds["step"]
            for which in ("calibrated", "plain"):
                passes = timing.seconds[which]
                ratio = median(s / p for s, p in zip(step, passes, strict=True))
                print(
                    f"    against the passes of the {which + ' net':57}{1e3 * median(step):9.2f}{1e3 * median(passes):8.2f}"
                    f"{ratio:7.2f}"
                )


if __name__ == "__main__":
    main()
