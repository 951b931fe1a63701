"""Measure time and memory of an importance, compared with a plain pass, a batch-1 loop and other libraries.

    python scripts/bench_importance.py [--device cpu] [--threads 2] [--markdown table.md]

The table has a row per network and importance. Before a row is timed, every result on the first 16 examples is compared with
the batch-1 loop in float64. Then the methods are timed in turn. Each timing is followed by one of the plain pass and divided
by it, and the table has the medians of these ratios. So a noisy machine slows both sides of a ratio.

  plain       one forward and backward pass, mean cross-entropy, batches of 128, .grad set to None between, no optimizer
  ours        clbench.fisher and clbench.mas in batches of 1000, as in a run of clbench
              (models of transformers, timm and torchvision: both in batches of 16, scripts/bench_nets.py)
  batch-1     one example at a time, one backward pass per example and label; 1/32 of the examples, scaled
  nngeometry  PMatDiag, without MAS because it only squares; a quarter of the examples, scaled, on the CNN and the ResNet
  backpack    SumGradSquared, DiagGGNExact (equal to the exact Fisher of a softmax), BatchGrad for MAS; examples as above
  torch.func  vmap(grad) over 64 examples at a time, once per label for exact; 1/8 of the examples, scaled
  laplace     GGNInterface.diag of laplace-torch for exact, EFInterface.diag for one label; 1/8 of the examples, scaled, 16 at a
              time, because it keeps their Jacobians

A library that fails on a network has no time in its row. The extra "peers" installs the libraries.

All networks are in evaluation mode. The labels of "sample" are sampled once by the rule of clbench and passed to the other
methods, which saves them the sampling. Extra memory is the peak memory during one call minus the memory before it. On a CPU it
is the resident memory (VmHWM of Linux after a reset) in a new process that has made one call on two examples. On a GPU it is
max_memory_allocated.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from bench_nets import NETS, OWN
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from clbench import fisher, mas
from clbench.importance.likelihoods import inverse_cdf

PLAIN, CHECKED = 128, 16
TOLERANCE = 1e-3
KINDS = (("empirical", 10), ("predicted", 10), ("sample", 10), ("exact", 2), ("exact", 10), ("mas", 10))
PEERS = ("nngeometry", "backpack", "torch.func", "laplace")
Importance = dict[str, Tensor]


class Case(NamedTuple):
    """Row of the table: an importance, a network, and examples with labels."""

    kind: str
    net: nn.Module
    x: Tensor
    y: Tensor
    ours: int
    plain: int

    def first(self, n: int) -> Case:
        """Return the case with the first ``n`` examples."""
        return self._replace(x=self.x[:n], y=self.y[:n])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the examples in batches."""
        return list(zip(self.x.split(size), self.y.split(size), strict=True))


def case(name: str, kind: str, classes: int, examples: int, device: str, tiny: bool = False) -> Case:
    """Return the case of one row, with a small network if ``tiny``."""
    torch.manual_seed(0)
    net = NETS[name].build(classes, tiny).to(device).eval()
    x, y = NETS[name].inputs(examples).to(device), torch.randint(classes, (examples,), device=device)
    with torch.no_grad():  # some models begin with a head of zeros
        for p in net.parameters():
            if p.dim() == 2 and len(p) == classes:
                p.normal_(std=0.1)
    if kind == "sample":
        with torch.no_grad():
            z = torch.cat([net(some) for some in x.split(NETS[name].plain)])
        u = torch.rand(examples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y = inverse_cdf(z, u.to(device))
    if kind == "predicted":
        with torch.no_grad():
            y = torch.cat([net(some).argmax(1) for some in x.split(NETS[name].plain)])
    return Case(kind, net, x, y, NETS[name].ours, NETS[name].plain)


def plain(c: Case) -> None:
    for x, y in c.batches(c.plain):
        c.net.zero_grad(set_to_none=True)
        cross_entropy(c.net(x), y).backward()
    c.net.zero_grad(set_to_none=True)


def ours(c: Case) -> Importance:
    if c.kind == "mas":
        return mas(c.net, c.batches(c.ours))
    return fisher(c.net, c.batches(c.ours), labels=c.kind)


def terms(kind: str, z: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor | float]]:
    """Return the values to differentiate for one example with outputs z (C,), and the weights of their squared gradients."""
    if kind == "exact":
        logp = z.log_softmax(0)
        return list(zip(logp, logp.detach().exp(), strict=True))
    return [(z.square().sum() if kind == "mas" else cross_entropy(z, y), 1.0)]


def loop(c: Case) -> Importance:
    """Return the importance by the batch-1 loop."""
    names, params = zip(*c.net.named_parameters(), strict=True)
    totals = [torch.zeros_like(p) for p in params]
    for x, y in c.batches(1):
        todo = terms(c.kind, c.net(x)[0], y[0])
        for k, (value, weight) in enumerate(todo):
            for total, g in zip(
                totals, torch.autograd.grad(value, params, retain_graph=k + 1 < len(todo)), strict=True
            ):
                total += g.abs() if c.kind == "mas" else weight * g.square()
    return {name: total / len(c.x) for name, total in zip(names, totals, strict=True)}


def by_func(c: Case) -> Importance:
    """Return the importance by vmap(grad) over examples, for one label at a time."""
    params = {name: p.detach() for name, p in c.net.named_parameters()}
    totals = {name: torch.zeros_like(p) for name, p in params.items()}

    def value(p: Importance, x: Tensor, y: Tensor) -> Tensor:
        return terms("mas" if c.kind == "mas" else "empirical", functional_call(c.net, p, (x[None],))[0], y)[0][0]

    gradients = vmap(grad(value), in_dims=(None, 0, 0))
    for x, y in c.batches(64):
        labels = [(y, torch.ones(len(y), device=y.device))]
        if c.kind == "exact":
            with torch.no_grad():
                p = c.net(x).softmax(1)
            labels = [(torch.full_like(y, label), p[:, label]) for label in range(p.shape[1])]
        for label, weight in labels:
            for name, g in gradients(params, x, label).items():
                size = g.abs() if c.kind == "mas" else g.square()
                totals[name] += torch.tensordot(weight, size, 1)
    return {name: total / len(c.x) for name, total in totals.items()}


def by_nngeometry(c: Case) -> Importance:
    """Return the diagonal of nngeometry. The true label is passed as a function with one output."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    data = TensorDataset(c.x, c.y)
    order = BatchSampler(SequentialSampler(data), PLAIN, drop_last=False)
    loader = DataLoader(data, sampler=order, batch_size=None)  # whole slices, so that no time is spent on collating
    if c.kind == "exact":
        diagonal = FIM(c.net, loader, PMatDiag, device=str(c.x.device)).get_diag()
    else:
        layers = LayerCollection.from_model(c.net)
        of_label = lambda x, y: c.net(x).log_softmax(1).gather(1, y[:, None])  # noqa: E731
        backend = TorchHooksJacobianBackend(layer_collection=layers, model=c.net, function=of_label)
        diagonal = PMatDiag(generator=backend, examples=loader).get_diag()
    flat = diagonal * len(order) / len(c.x)  # nngeometry divides by the length of the sampler
    sizes = [p.numel() for p in c.net.parameters()]
    pieces = zip(c.net.named_parameters(), flat.split(sizes), strict=True)
    return {name: piece.view_as(p) for (name, p), piece in pieces}


def by_backpack(c: Case) -> Importance:
    """Return the importance by BackPACK. ``c.net`` must be extended."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad, DiagGGNExact, SumGradSquared

    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    extension, field = {
        "exact": (DiagGGNExact, "diag_ggn_exact"),
        "mas": (BatchGrad, "grad_batch"),
    }.get(c.kind, (SumGradSquared, "sum_grad_squared"))
    totals = [torch.zeros_like(p) for p in c.net.parameters()]
    for x, y in c.batches(c.plain):
        c.net.zero_grad(set_to_none=True)
        with backpack(extension()):
            (c.net(x).square().sum() if c.kind == "mas" else loss(c.net(x), y)).backward()
        for total, p in zip(totals, c.net.parameters(), strict=True):
            value = getattr(p, field)
            total += value.abs().sum(0) if c.kind == "mas" else value
            delattr(p, field)
    return {name: total / len(c.x) for (name, _), total in zip(c.net.named_parameters(), totals, strict=True)}


def by_laplace(c: Case) -> Importance:
    """Return the importance by laplace-torch: the diagonal of the Gauss-Newton matrix, or of one label per example."""
    from laplace.curvature import CurvlinopsEF, CurvlinopsGGN

    net = copy.deepcopy(c.net)
    curvature = (CurvlinopsGGN if c.kind == "exact" else CurvlinopsEF)(net, "classification")
    total = sum(curvature.diag(x, y)[1] for x, y in c.batches(CHECKED))
    pieces = (total / len(c.x)).split([p.numel() for p in net.parameters()])
    return {name: piece.view_as(p) for (name, p), piece in zip(net.named_parameters(), pieces, strict=True)}


def contenders(c: Case, name: str, peers: tuple[str, ...]) -> dict[str, tuple[Callable[[Case], Importance], Case]]:
    """Return the methods that support the row, each with the case on which it is timed."""
    n = len(c.x)
    part = n if name == "mlp" else max(CHECKED, n // 4)
    found = {"ours": (ours, c), "batch-1": (loop, c.first(max(CHECKED, n // 32)))}
    possible = {"torch.func": (by_func, c.first(max(CHECKED, n // 8)))}
    if c.kind != "mas":
        possible["nngeometry"] = (by_nngeometry, c.first(part)._replace(net=copy.deepcopy(c.net)))  # it may leave hooks
        possible["laplace"] = (by_laplace, c.first(max(CHECKED, n // 8)))
    if "backpack" in peers:
        possible["backpack"] = (by_backpack, extended(c.first(part), name == "resnet18_reduced"))
    return found | {peer: possible[peer] for peer in peers if peer in possible and runs(*possible[peer])}


def extended(c: Case, convert: bool) -> Case:
    """Return the case with a network that BackPACK has extended, as it is if this fails."""
    from backpack import extend

    try:
        return c._replace(net=extend(copy.deepcopy(c.net), use_converter=convert).eval())
    except Exception as error:
        print(f"backpack cannot extend {type(c.net).__name__}: {error}", file=sys.stderr)
        return c


def runs(f: Callable[[Case], Importance], c: Case) -> bool:
    """Return whether another library can measure the network: without an error, and with the right values."""
    few = c.first(CHECKED)
    try:
        exact = loop(few._replace(net=copy.deepcopy(c.net).double(), x=doubled(few.x)))
        return deviation(c.kind, f(few), exact) < TOLERANCE
    except Exception as error:
        print(f"{f.__name__} cannot measure {type(c.net).__name__}: {str(error)[:100]}", file=sys.stderr)
        return False


def doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def deviation(kind: str, a: Importance, b: Importance) -> float:
    """Return the largest |a - b| / (|b| + mean |b|) over all entries, with the mean over each tensor.

    A mean below 1e-8 of the largest one counts as this (1e-4 without squares), because some gradients are zero up to rounding (a
    bias before a softmax).
    """
    least = (1e-4 if kind == "mas" else 1e-8) * max(float(y.abs().mean()) for y in b.values())
    pairs = zip(a.values(), b.values(), strict=True)
    return max(float(((x.double() - y).abs() / (y.abs() + y.abs().mean().clamp(min=least))).max()) for x, y in pairs)


def seconds(f: Callable[[Case], Any], c: Case) -> float:
    """Return the seconds per 1,000 examples."""
    synchronize = torch.cuda.synchronize if c.x.is_cuda else lambda: None
    synchronize()
    start = perf_counter()
    f(c)
    synchronize()
    return (perf_counter() - start) * 1000 / len(c.x)


def row(name: str, kind: str, classes: int, args: argparse.Namespace) -> dict[str, Any]:
    """Compare the results of all methods, then time them in turn.

    Raises:
        SystemExit: The results differ.
    """
    c = case(name, kind, classes, args.examples, args.device, args.quick)
    methods = contenders(c, name, args.peers)
    few = c.first(CHECKED)
    exact = loop(few._replace(net=copy.deepcopy(c.net).double(), x=doubled(few.x)))
    deviations = {
        method: deviation(kind, f(its_case.first(CHECKED)), exact) for method, (f, its_case) in methods.items()
    }
    if not max(deviations.values()) < TOLERANCE:
        raise SystemExit(f"{name}, {kind} over {classes}: relative deviations {deviations} are not below {TOLERANCE}")
    ours(c), plain(c)  # warm
    times: dict[str, list[float]] = {method: [] for method in methods}
    ratios: dict[str, list[float]] = {method: [] for method in methods}
    plains = []
    for turn in range(args.repeats):
        for method, (f, its_case) in methods.items():
            if method != "ours" and turn >= args.peer_repeats:
                continue
            times[method].append(seconds(f, its_case))
            plains.append(seconds(plain, c))
            ratios[method].append(times[method][-1] / plains[-1])
    memory = {}
    for method in ("ours", "plain"):
        cell = (name, kind, classes, args.examples, args.device, method, torch.get_num_threads())
        memory[method] = None if args.quick else extra_memory(*cell)
    return {
        "net": name,
        "importance": kind + (f" over {classes}" if kind == "exact" else ""),
        "seconds": {method: median(t) for method, t in times.items()} | {"plain": median(plains)},
        "ratio": {method: median(r) for method, r in ratios.items()},
        "extra_megabytes": memory,
        "deviation": deviations,
    }


def extra_memory(*cell: Any) -> float | None:
    """Return ``peak`` of a new process, forked from one that has only imported modules, or None without /proc."""
    if cell[4] == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clbench"])
    with context.Pool(1) as pool:
        return pool.apply(peak, cell)


def peak(name: str, kind: str, classes: int, examples: int, device: str, method: str, threads: int) -> float:
    """Return the megabytes that one call adds at its peak."""
    torch.set_num_threads(threads)
    c = case(name, kind, classes, examples, device)
    f = {"ours": ours, "plain": plain}[method]
    f(c.first(2))
    if c.x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f(c)
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def kilobytes(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = kilobytes("VmRSS")
    f(c)
    return (kilobytes("VmHWM") - before) * 1024 / 1e6


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the header and the rows of the table."""
    head = ["net", "importance", "s/1000", "/ plain", "batch-1 / ours", "extra MB (plain)"]
    lines = [[*head, *(f"{peer} s (/ plain)" for peer in PEERS), "deviation"]]
    for r in rows:
        second, ratio, memory = r["seconds"], r["ratio"], r["extra_megabytes"]
        line = [r["net"], r["importance"], f"{second['ours']:.3f}", f"{ratio['ours']:.2f}"]
        line.append(f"{ratio['batch-1'] / ratio['ours']:.0f}")
        line.append("-" if None in memory.values() else f"{memory['ours']:.0f} ({memory['plain']:.0f})")
        line += [f"{second[peer]:.3f} ({ratio[peer]:.1f})" if peer in ratio else "-" for peer in PEERS]
        lines.append([*line, f"{max(r['deviation'].values()):.0e}"])
    return lines


def aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(lines: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body]) + "\n"


def installed() -> tuple[str, ...]:
    """Return the installed libraries to compare with. The extra ``peers`` installs them."""
    from importlib.util import find_spec

    return tuple(peer for peer in PEERS if find_spec(peer.partition(".")[0]))


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: PyTorch's choice)")
    parser.add_argument("--examples", type=int, default=1024, help="examples per row (default 1024)")
    parser.add_argument("--repeats", type=int, default=9, help="repetitions of ours and the plain pass (default 9)")
    parser.add_argument("--peer-repeats", type=int, default=3, help="repetitions of the other methods (default 3)")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=OWN, help="networks (default: those of clbench)")
    parser.add_argument("--kinds", nargs="+", choices=sorted({k for k, _ in KINDS}), help="importances (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="small networks, 32 examples, one repetition, no memory: a smoke test"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    args = parser.parse_args()
    if args.quick:
        args.examples, args.repeats, args.peer_repeats = 32, 1, 1
    if args.examples < CHECKED:
        parser.error(f"--examples {args.examples}: expected at least {CHECKED}, which the comparison needs.")
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Full backward hook is firing|There is a performance drop")
    args.peers = installed()
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()}-core {platform.machine()}"
    print(
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.examples} examples", flush=True
    )
    rows = []
    for name in args.nets:
        for kind, classes in KINDS:
            if args.kinds and kind not in args.kinds:
                continue
            rows.append(row(name, kind, classes, args))
            if args.json:  # after every row, so that an interrupted run keeps its results
                args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
            print(f"{name}, {rows[-1]['importance']}: {rows[-1]['ratio']['ours']:.2f} times plain", file=sys.stderr)
    lines = table(rows)
    print(aligned(lines))
    if args.markdown:
        args.markdown.write_text(markdown(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
