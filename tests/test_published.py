"""Published numbers on real data, within the tolerance stated."""

from __future__ import annotations

import json
from itertools import product
from statistics import fmean

import pytest

from tests.conftest import in_this_process

pytestmark = pytest.mark.slow


def test_ewc_from_mnist_to_fashion_mnist_is_in_the_published_range(composed, real_data, tmp_path):
    rows = {"1e5": [], "0": []}
    for lam, seed in product(rows, range(2)):  # of a sweep, so that MNIST is learned once per seed
        folder = tmp_path / f"{lam}-{seed}"
        cfg = composed(
            "experiment=seed_mnist_fashion", f"lam={lam}", f"seed={seed}", f"data_dir={real_data}", "trainer=cpu"
        )
        in_this_process(cfg, folder, tmp_path)
        rows[lam].append(json.loads((folder / "metrics.json").read_text())["accuracy_matrix"][1])
    mnist, fashion = map(fmean, zip(*rows["1e5"], strict=True))
    assert 0.94 <= mnist <= 0.98
    assert 0.81 <= fashion <= 0.85
    forgotten, _ = map(fmean, zip(*rows["0"], strict=True))
    assert forgotten < 0.35
