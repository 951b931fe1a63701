"""The global generators and the seeds derived from that of a run."""

from __future__ import annotations

import random

import numpy as np
import torch

from clbench.seeding import random_states, set_random_states

CPU = torch.device("cpu")


def label_samples():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_restored_states_give_the_same_random_numbers(tmp_path):
    label_samples()  # each generator then stores the second of a pair of gaussians
    torch.save(random_states(CPU), tmp_path / "states")
    first = [label_samples() for _ in range(3)]
    set_random_states(torch.load(tmp_path / "states", weights_only=True), CPU)
    assert [label_samples() for _ in range(3)] == first
