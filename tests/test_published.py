"""Published numbers on real data, within the tolerance stated."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def mean_over_seeds(run, data, *options):
    rows = [
        run(
            "experiment=seed_mnist_fashion",
            *options,
            f"seed={seed}",
            f"data_dir={data}",
            folder=f"{options[0][4:]}{seed}",
        )
        for seed in range(2)
    ]
    return [sum(row["accuracy_matrix"][1][task] for row in rows) / len(rows) for task in (0, 1)]


def test_ewc_from_mnist_to_fashion_mnist_is_in_the_published_range(run, real_data):
    mnist, fashion = mean_over_seeds(run, real_data, "lam=1e5")
    assert 0.94 <= mnist <= 0.98
    assert 0.81 <= fashion <= 0.85
    forgotten, _ = mean_over_seeds(run, real_data, "lam=0")
    assert forgotten < 0.35
