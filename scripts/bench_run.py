"""Measure the overhead of clbench over a bare PyTorch loop. Times both in turn on Split MNIST and prints ratios.

    python scripts/bench_run.py [--runs 5] [--data-dir DIR]

Both learn 5 tasks x 1 epoch, batch 128, MLP 784-400-400-10, Adam, EWC with the per-example empirical Fisher over all
training images, and evaluate on all 5 test sets after each task. Each run is a separate process. A third process only
imports torch, torchvision and lightning. MNIST must be in DIR (default: $CLBENCH_DATA_DIR).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

PARTS = ("train", "importance", "evaluation", "total")


def bare_fisher(net: Any, x: Any, y: Any, columns: slice) -> list[Any]:
    """Return the empirical Fisher of each parameter of an MLP by the closed form for linear layers."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    total = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(0, len(x), 1000):
        inputs, outputs, h = [], [], x[i : i + 1000]
        for layer in net:
            if isinstance(layer, nn.Linear):
                inputs.append(h.detach())
                outputs.append(layer(h))
                h = outputs[-1]
            else:
                h = layer(h)
        loss = cross_entropy(h[:, columns], y[i : i + 1000], reduction="sum")
        for k, (a, g) in enumerate(zip(inputs, torch.autograd.grad(loss, outputs), strict=True)):
            total[2 * k] += (g * g).T @ (a * a)
            total[2 * k + 1] += (g * g).sum(0)
    return [f / len(x) for f in total]


def bare(data_dir: str) -> dict[str, float]:
    """Train with tensors and a closed-form Fisher only, the lower limit, and return the seconds of each part."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torchvision.datasets import MNIST

    began = perf_counter()
    sets = [MNIST(data_dir, train=train) for train in (True, False)]
    (x, y), (x_test, y_test) = [(s.data.flatten(1).float().div_(255), s.targets) for s in sets]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    params = list(net.parameters())
    fishers, anchors = [torch.zeros_like(p) for p in params], [p.detach().clone() for p in params]
    seconds = dict.fromkeys(PARTS, 0.0)
    tests = [(x_test[y_test // 2 == t], y_test[y_test // 2 == t]) for t in range(5)]
    for task in range(5):
        start = perf_counter()
        mine = y // 2 == task
        x_task, y_task = x[mine], y[mine] - 2 * task
        columns = slice(2 * task, 2 * task + 2)
        optimizer = torch.optim.Adam(params, lr=1e-3)
        order = torch.randperm(len(x_task))
        x_order, y_order = x_task[order], y_task[order]
        for i in range(0, len(order), 128):
            loss = cross_entropy(net(x_order[i : i + 128])[:, columns], y_order[i : i + 128])
            optimizer.zero_grad()
            loss.backward()
            if task:
                distance = torch._foreach_sub([p.detach() for p in params], anchors)
                torch._foreach_mul_(distance, fishers)
                torch._foreach_add_([p.grad for p in params], distance, alpha=1e3)
            optimizer.step()
        seconds["train"] += perf_counter() - start

        start = perf_counter()
        new = bare_fisher(net, x_task, y_task, columns)
        for k, p in enumerate(params):  # one penalty per task, by completing the square
            f = fishers[k] + new[k]
            share = torch.where(f > 0, new[k] / f, torch.ones_like(f))
            anchors[k] += share * (p.detach() - anchors[k])
            fishers[k] = f
        seconds["importance"] += perf_counter() - start

        start = perf_counter()
        with torch.no_grad():
            for t, (xs, ys) in enumerate(tests):
                (net(xs)[:, 2 * t : 2 * t + 2].argmax(1) == ys - 2 * t).double().mean().item()
        seconds["evaluation"] += perf_counter() - start
    seconds["total"] = perf_counter() - began
    return seconds


def timed(command: list[str], data_dir: str) -> float:
    """Return the seconds of a whole process."""
    start = perf_counter()
    environment = {**os.environ, "CLBENCH_DATA_DIR": data_dir}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return perf_counter() - start


def main() -> None:
    """Run all processes in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="number of runs of each (default 5)")
    parser.add_argument("--data-dir", default=os.environ.get("CLBENCH_DATA_DIR", ""), help="folder of MNIST")
    parser.add_argument("--bare", metavar="FILE", help=argparse.SUPPRESS)  # the child process of the bare loop
    args = parser.parse_args()
    if args.bare:
        Path(args.bare).write_text(json.dumps(bare(args.data_dir)), encoding="utf-8")
        return

    rows: dict[str, list[dict[str, float]]] = {"bare": [], "clbench": []}
    imports = []
    with tempfile.TemporaryDirectory() as scratch:
        for run in range(args.runs):
            out = Path(scratch) / f"bare{run}.json"
            whole = timed([sys.executable, __file__, "--bare", str(out), "--data-dir", args.data_dir], args.data_dir)
            rows["bare"].append({**json.loads(out.read_text(encoding="utf-8")), "process": whole})
            folder = Path(scratch) / f"run{run}"
            command = [sys.executable, "-m", "clbench.train", "experiment=bench_split_mnist", f"output_dir={folder}"]
            whole = timed(command, args.data_dir)
            seconds = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["seconds"]
            rows["clbench"].append({**seconds, "process": whole})
            imports.append(timed([sys.executable, "-c", "import torch, torchvision, lightning"], args.data_dir))

    def line(label: str, values: list[list[float]], form: str = "{:9.2f}") -> None:
        print(f"{label:34}" + "".join(form.format(median(v)) for v in values))

    keys = (*PARTS, "process")
    for row in [*rows["bare"], *rows["clbench"]]:
        row["parts"] = row["train"] + row["importance"] + row["evaluation"]
    print(f"median of {args.runs} runs, seconds{'':14}" + "".join(f"{key:>11}" for key in (*keys, "parts")))
    for name, runs in rows.items():
        line(name, [[run[key] for run in runs] for key in (*keys, "parts")], "{:11.2f}")
    pairs = list(zip(rows["clbench"], rows["bare"], strict=True))
    line("clbench / bare", [[c[key] / b[key] for c, b in pairs] for key in (*keys, "parts")], "{:11.2f}")
    mine = rows["clbench"]
    print(f"parts / total of clbench            {median([r['parts'] / r['total'] for r in mine]):.3f}  (at least .95)")
    line("imports of torch, torchvision, lightning ", [imports], "{:.2f}")
    beyond = [r["process"] - i - r["parts"] for r, i in zip(mine, imports, strict=True)]
    line("process - imports - parts, clbench", [beyond], "{:7.2f}  (at most 3)")


if __name__ == "__main__":
    main()
