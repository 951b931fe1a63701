"""What a sweep says about its runs."""

from __future__ import annotations

import json

import pytest
import torch

from clbench.metrics import intransigence


def test_intransigence_is_what_the_reference_learned_and_the_run_did_not():
    r = torch.tensor([[0.9, 0.0], [0.5, 0.6]])
    reference = torch.tensor([[1.0, 0.0], [0.0, 0.9]])
    assert intransigence(r, reference) == pytest.approx((0.1 + 0.3) / 2)
    assert intransigence(reference, reference) == 0


def test_a_sweep_with_a_reference_shows_intransigence_beside_each_run_of_the_same_seed(command, tmp_path):
    options = ("seed=0,1", "epochs=1", "data.tasks=2", "net.hidden=[16]", "output_dir=sweep")
    said = command("-m", "strategy=ewc,joint,independent", *options)
    assert said.returncode == 0, said.stderr
    assert "intransigence" in said.stdout
    assert "(joint)" in said.stdout
    r = [
        torch.tensor(json.loads((tmp_path / f"sweep/{i}/metrics.json").read_text())["accuracy_matrix"])
        for i in range(6)
    ]
    rows = [line for line in said.stdout.splitlines() if line.startswith("│")]
    for i, row in enumerate(rows):
        assert f"{intransigence(r[i], r[2 + i % 2]):.4f}" in row  # runs 2 and 3 are joint, seed 0 and 1


def test_a_sweep_without_a_reference_has_no_such_column(command):
    said = command("-m", "strategy=finetune", "seed=0,1", "epochs=1", "data.tasks=2", "net.hidden=[16]", "output_dir=s")
    assert "intransigence" not in said.stdout
