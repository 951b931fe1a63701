"""Measure time and memory per parameter of an importance of language models, to see how large a model may be.

    OMP_NUM_THREADS=1 python scripts/measure_large.py [--sizes 1 10 100] [--markdown table.md]

Each row is a decoder with about that number of million parameters, tied embeddings, a vocabulary of 8,000 and sequences of 64
tokens. New processes measure a plain forward and backward pass, and ``fisher(labels="sample")`` over all next tokens, on the same
16 sequences. Memory is the peak of the resident memory (VmHWM of Linux) minus the memory with the model alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clbench import fisher

VOCABULARY, LENGTH, SEQUENCES = 8000, 64, 16
SIZES = {1: (96, 2), 10: (320, 6), 100: (768, 14)}
"""Width and number of layers by the number of million parameters."""


class Decoder(nn.Module):
    """A decoder with learned positions and tied embeddings, (N, T) -> (N, T, V)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.tokens(x) + self.places.weight[: x.shape[1]]
        return self.layers(h, mask=mask, is_causal=True) @ self.tokens.weight.T / h.shape[-1] ** 0.5


def next_tokens(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return module(x)[:, :-1], x[:, 1:]


def megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measured(size: int, method: str) -> tuple[int, float, float]:
    """Return the number of parameters, the seconds per sequence of a second call, and the megabytes that the first call adds."""
    torch.manual_seed(0)
    net = Decoder(*SIZES[size]).eval()
    x = torch.randint(VOCABULARY, (SEQUENCES, LENGTH))

    def plain() -> None:
        z, y = next_tokens(net, x)
        cross_entropy(z.flatten(0, 1), y.flatten()).backward()

    f = plain if method == "plain" else lambda: fisher(net, [x], labels="sample", outputs=next_tokens)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = megabytes("VmRSS")
    f()
    memory, start = megabytes("VmHWM") - before, process_time()
    f()
    return sum(p.numel() for p in net.parameters()), (process_time() - start) / SEQUENCES, memory


def row(size: int) -> list[str]:
    """Return the row of a model with about ``size`` million parameters. Each method is measured in a new process."""
    found = []
    for method in ("plain", "fisher"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measured, (size, method)))
    (number, plain, plain_mb), (_, ours, ours_mb) = found
    figures = f"{number / 1e6:.1f}", f"{plain:.2f}", f"{ours:.2f}", f"{ours / plain:.2f}"
    return [*figures, f"{1e6 * plain_mb / number:.1f}", f"{1e6 * ours_mb / number:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES), help="million parameters")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    args = parser.parse_args()
    head = [
        "M parameters",
        "plain s/sequence",
        "fisher s/sequence",
        "ratio",
        "plain bytes/parameter",
        "fisher bytes/parameter",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    print(lines[0], flush=True)
    for size in args.sizes:
        lines.append(" | ".join(row(size)))
        print(lines[-1], flush=True)
    if args.markdown:
        args.markdown.write_text("".join(f"| {line} |\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
