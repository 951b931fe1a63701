"""Measure the cost of each strategy: time per step relative to fine-tuning, seconds of consolidation, stored bytes.

    python scripts/bench_strategies.py [--rounds 5] [--strategies ewc,er] [--markdown FILE] [KEY=VALUE ...]

Every round trains two tasks with each strategy in turn, as ``clbench train`` does. KEY=VALUE are overrides; the defaults are
permuted digits, MLP 400-400 and batch size 128. The steps of the second task are timed, where penalties and memories are
active. Each time is divided by that of fine-tuning in the same round. The table has the medians over rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import lightning as L
import torch
from hydra import compose, initialize_config_dir

from clbench.config.messages import silence_lightning
from clbench.config.options import budget, conf_dir
from clbench.experiment.build import build
from clbench.runs.folder import RunFolder
from clbench.training.loop import LoopOptions, TaskLoop

DEFAULTS = ("data=permuted_digits", "net.hidden=[400,400]", "batch_size=128", "steps=200", "data.tasks=2")


class Clock(L.Callback):
    """Measure the seconds per step of each task. The callback must come after the strategy, to exclude consolidation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == 0:
            self.start = perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.end = perf_counter()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seconds.append((self.end - self.start) / trainer.global_step)


def measure(name: str, overrides: list[str], scratch: Path) -> dict[str, float]:
    """Return seconds per step of the last task, seconds of consolidation per task, and bytes after the first and last task."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [f"strategy={name}", *DEFAULTS, *overrides, "checkpoints=none"])
    sequence, learner, strategy = build(cfg)
    clock = Clock()

    def make_trainer(index: int, callbacks: list[L.Callback]) -> L.Trainer:
        return L.Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=1,
            callbacks=[*callbacks, clock],
            **budget(cfg, index, len(sequence)),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    folder = RunFolder(scratch, "bench", "none")
    loop = TaskLoop(sequence, learner, strategy, folder, LoopOptions(seed=cfg.seed))
    for index in loop.remaining:
        loop.train_task(index, make_trainer)
    results = loop.results()
    first, *_, last = (cost["bytes"] for cost in results["importance"])
    seconds = results["seconds"]["importance"] / len(sequence)
    return {"step": clock.seconds[-1], "consolidation": seconds, "first": first, "last": last, "tasks": len(sequence)}


def size(count: float) -> str:
    """Format a number of bytes with a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def main() -> None:
    """Measure the costs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of runs of each strategy (default 5)")
    parser.add_argument("--strategies", help="strategies, separated by commas (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides, such as data=permuted_mnist")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    silence_lightning()
    there = sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))
    chosen = args.strategies.split(",") if args.strategies else there
    names = ["finetune", *(name for name in chosen if name != "finetune")]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.rounds):
            for name in names:
                print(f"\rround {number + 1}/{args.rounds} {name:20}", end="", file=sys.stderr, flush=True)
                rounds[name].append(measure(name, args.overrides, Path(scratch) / f"{name}{number}"))
    print(file=sys.stderr)
    lines = [
        "| strategy | step, times fine-tuning | consolidation, s per task | kept after task 1 | after the last |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        ratio = median(a["step"] / b["step"] for a, b in zip(rounds[name], rounds["finetune"], strict=True))
        seconds = median(r["consolidation"] for r in rounds[name])
        first, last = rounds[name][0]["first"], rounds[name][0]["last"]
        lines.append(f"| {name} | {ratio:.2f} | {seconds:.3f} | {size(first)} | {size(last)} |")
    table = "\n".join(lines)
    print(table)
    if args.markdown:
        args.markdown.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
