"""Published numbers on real data, within the stated tolerance."""

from __future__ import annotations

import pytest

import clbench

pytestmark = pytest.mark.slow


def test_ewc_on_mnist_then_fashion_is_in_the_published_range(real_data, tmp_path):
    """Run one seed. results/seed_mnist_fashion.md has all seeds."""
    rows = {}
    for lam in ("1e5", "0"):  # the second run reuses the first task of the first run
        overrides = ["experiment=seed_mnist_fashion", f"lam={lam}", f"data_dir={real_data}", "trainer=cpu"]
        rows[lam] = clbench.run(overrides, tmp_path / lam, quiet=True, sweep=tmp_path)["accuracy_matrix"][1]
    mnist, fashion = rows["1e5"]
    assert 0.94 <= mnist <= 0.98
    assert 0.81 <= fashion <= 0.85
    assert rows["0"][0] < 0.35
