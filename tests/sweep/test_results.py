"""What a sweep prints about its results."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from clbench.sweep.grid import PlannedRun
from clbench.sweep.results import best_at_an_edge


def planned(lam, seed=0, **options):
    overrides = ("strategy=ewc", f"lam={lam}", f"seed={seed}", *(f"{key}={value}" for key, value in options.items()))
    cfg = {"lam": lam, "seed": seed, "objective": "validation.average_accuracy", "metrics": {"extra": []}, **options}
    return PlannedRun(overrides, "ewc", OmegaConf.create(cfg), "")


def ended(value):
    return {"validation": {"average_accuracy": value}}


@pytest.mark.parametrize(
    ("means", "lines"),
    [
        ([0.5, 0.7, 0.6], []),
        ([0.5, 0.6, 0.7], ["ewc: the best lam, 1e4, is the largest that was tried. A larger one may be better."]),
        ([0.7, 0.6, 0.6], ["ewc: the best lam, 1, is the smallest that was tried. A smaller one may be better."]),
    ],
)
def test_a_best_lam_at_an_edge_is_said(means, lines):
    runs = [planned(lam, seed) for lam in (1, 100, 1e4) for seed in (0, 1)]
    metrics = [ended(mean + shift) for mean in means for shift in (-0.3, 0.3)]  # the mean over seeds counts
    assert best_at_an_edge(runs, metrics, ["lam", "seed"]) == lines


def test_edges_are_found_for_each_value_of_the_other_options():
    runs = [planned(lam, fisher=fisher) for fisher in ("exact", "sample") for lam in (1, 10, 100)]
    metrics = [ended(value) for value in (0.1, 0.2, 0.1, 0.1, 0.2, 0.3)]
    (line,) = best_at_an_edge(runs, metrics, ["fisher", "lam"])
    assert line.startswith("ewc fisher=sample: the best lam, 100, is the largest")


def test_no_edge_is_said_without_several_results():
    runs = [planned(1), planned(10), planned(None), planned([1, 2])]
    assert best_at_an_edge(runs, [ended(0.5), None, ended(0.9), ended(0.9)], ["lam"]) == []
