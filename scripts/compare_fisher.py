"""Compare public formulas for "the Fisher" of EWC with the exact Fisher while a network is trained.

    python scripts/compare_fisher.py                                 scikit-learn's digits, no download
    python scripts/compare_fisher.py --data mnist --seed 0 1 2       Split MNIST, task 1, in $CLBENCH_DATA_DIR
    python scripts/compare_fisher.py --quick                         smoke test

An MLP with 400-400 hidden units learns the first task (two classes) with Adam and lr 1e-3. At --steps, every formula is
measured on the same weights and examples. The results are written to --out: compare_fisher.json (all numbers), .md (tables)
and .png (figure).

The rows of Avalanche run its own code. They are left out if it is not installed (pip install avalanche-lib==0.6.0).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from comparison import formulas, from_avalanche, side_effects
from comparison.one_task import accuracy, first_task, outputs, training
from comparison.report import Row, draw, report
from scipy.stats import rankdata
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.importance import fisher
from clbench.params import Params

STEPS = (0, 20, 50, 100, 200, 500, 1000, 2000)
Measure = Callable[[nn.Module, Tensor, Tensor, int], Params]


def van_de_ven(labels: str) -> Measure:
    """Return the formula with these labels as a ``Measure``. Its batches contain one example."""
    return lambda net, x, y, batch: formulas.van_de_ven(net, x, y, labels)


def in_groups(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Params:
    """Return the importance of clbench that matches code which squares batch means."""
    return fisher(net, [(x, y)], labels="empirical", fisher_batch=batch)


def kinds() -> dict[str, tuple[Measure, float]]:
    """Return by name the formula, and the lam of lam/2 * sum F (theta - anchor)^2 that equals lam=1 in its source.

    Avalanche and Mammoth have no factor 1/2. FACIL halves the Fisher of the first task (alpha 0.5, starting from zero).
    """
    found = {
        "van de Ven, all labels": (van_de_ven("exact"), 1.0),
        "van de Ven, one sampled label": (van_de_ven("sample"), 1.0),
        "van de Ven, true label": (van_de_ven("empirical"), 1.0),
        "van de Ven, predicted label": (van_de_ven("predicted"), 1.0),
        "Mammoth": (formulas.mammoth, 2.0),
        "FACIL": (formulas.facil, 0.5),
        "Avalanche (really run)": (from_avalanche.ewc, 2.0),
        "PyCIL": (formulas.pycil, 1.0),
        "SequeL": (formulas.sequel, 1.0),
        "clbench, fisher_batch=b": (in_groups, 1.0),
    }
    return {
        name: kind for name, kind in found.items() if kind[0] is not from_avalanche.ewc or from_avalanche.available()
    }


def measured(seed: int, data: str, steps: Sequence[int], examples: int) -> tuple[list[Row], str]:
    """Return a row per step and formula for one seed, and a description of the data. Print a line of progress per step."""
    setup = first_task(data, seed, "net=mlp", "net.hidden=[400,400]")
    net, batch = setup.net, setup.batch_size
    x, y = setup.x[:examples], setup.y[:examples]
    rows: list[Row] = []
    for step in training(setup, sorted(set(steps))):
        began = perf_counter()
        test_accuracy = accuracy(outputs(net, setup.x_test), setup.y_test)
        exact = formulas.exact(net, x, y, batch)
        traces, ranks = trace(exact), Ranks(exact)
        for name, (measure, lam_factor) in kinds().items():
            f = measure(net, x, y, batch)
            net.eval()  # Avalanche leaves the network in train mode
            row: Row = {"seed": seed, "step": step, "test_accuracy": test_accuracy, "exact_trace": traces["all"]}
            row |= {"formula": name, "lam_factor": lam_factor}
            row["ratio"] = {layer: number(value / (traces[layer] or math.nan)) for layer, value in trace(f).items()}
            row |= ranks.compared_with(f)
            if measure is from_avalanche.ewc:
                row["rebuilt_differs"] = difference(f, formulas.avalanche(net, x, y, batch))
            rows.append(row)
        seconds = perf_counter() - began
        print(
            f"seed {seed}  step {step:5}  test accuracy {test_accuracy:.4f}  trace of the exact Fisher "
            f"{traces['all']:.2e}  measured in {seconds:.1f} s",
            flush=True,
        )
    return rows, f"split_{data}, task 1, {len(x)} of {len(setup.x)} training examples, batch {batch}"


def trace(f: Params) -> dict[str, float]:
    """Return the sum over the parameters of each layer, and over all parameters."""
    sums = {"all": 0.0}
    for name, value in f.items():
        layer = "head" if name.startswith("head.") else name.rpartition(".")[0]
        total = value.double().sum().item()
        sums[layer] = sums.get(layer, 0.0) + total
        sums["all"] += total
    return sums


def difference(f: Params, g: Params) -> float:
    """Return the largest difference of two importances, relative to the largest entry of its tensor."""
    return max(((f[name] - g[name]).abs().max() / g[name].abs().max()).item() for name in g)


class Ranks:
    """Ranks of the parameters by exact Fisher, for Spearman correlations. Ties have their mean rank."""

    def __init__(self, exact: Params) -> None:
        values = flat(exact)
        self.nonzero = values > 0
        self.ranks, self.ranks_nonzero = rankdata(values), rankdata(values[self.nonzero])

    def compared_with(self, f: Params) -> Row:
        """Return the correlation over all parameters, over those with nonzero exact Fisher, and the share of zeros."""
        values = flat(f)
        return {
            "rank_correlation": correlation(rankdata(values), self.ranks),
            "rank_correlation_nonzero": correlation(rankdata(values[self.nonzero]), self.ranks_nonzero),
            "exact_zero": 1 - self.nonzero.mean().item(),
        }


def flat(f: Params) -> np.ndarray:
    """Return all entries as a vector."""
    return torch.cat([value.flatten() for value in f.values()]).numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Pearson's correlation, None if an input is constant or undefined."""
    return number(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else None


def number(value: float) -> float | None:
    """Return the value for JSON, None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or ``given``.

    Raises:
        SystemExit: An option is unknown or out of range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        choices=("digits", "mnist"),
        default="digits",
        help="default: digits, no download",
    )
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="training steps at which to measure")
    parser.add_argument(
        "--examples", type=int, default=2000, help="largest number of examples for a measurement (default: 2000)"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one seed, or several for medians and ranges")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/compare_fisher"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="steps 0 and 20 on 64 examples; overrides --steps and --examples"
    )
    args = parser.parse_args(given)
    if args.quick:
        args.steps, args.examples = (0, 20), 64
    for option, values, least in (("steps", args.steps, 0), ("examples", [args.examples], 2), ("seed", args.seed, 0)):
        if min(values) < least:
            parser.error(f"--{option} {min(values)}: expected at least {least}.")
    return args


def main() -> None:
    """Measure all formulas and write the three files."""
    args = arguments()
    torch.set_num_threads(1)
    if not from_avalanche.available():
        print(f"Avalanche is not installed, so its rows are left out. Try {from_avalanche.INSTALL}")
    rows: list[Row] = []
    try:
        for seed in args.seed:
            found, about = measured(seed, args.data, args.steps, args.examples)
            rows += found
        effects = side_effects.compare(args.data, args.seed[0], 20 if args.quick else 300, args.examples)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    about += f", seed {', '.join(map(str, args.seed))}"
    command = " ".join(["python scripts/compare_fisher.py", *sys.argv[1:]])
    text = report(about, command, rows, effects)
    everything: dict[str, Any] = {"command": command, "about": about, "torch": torch.__version__}
    everything |= {"rows": rows, "batch_norm": effects}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compare_fisher.json").write_text(
        json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (args.out / "compare_fisher.md").write_text(
        f"# Public formulas for the Fisher: all tables\n\n{text}", encoding="utf-8"
    )
    draw(about, rows).savefig(args.out / "compare_fisher.png", dpi=150)
    print(f"\n{text}\nwritten to {args.out}")


if __name__ == "__main__":
    main()
