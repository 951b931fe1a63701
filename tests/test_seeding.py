"""The global generators and the seeds derived from that of a run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from clbench.seeding import derive, generator, random_states, reseed, set_random_states

CPU = torch.device("cpu")


def label_samples():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_restored_states_give_the_same_random_numbers(tmp_path):
    label_samples()  # each generator then stores the second of a pair of gaussians
    torch.save(random_states(CPU), tmp_path / "states")
    first = [label_samples() for _ in range(3)]
    set_random_states(torch.load(tmp_path / "states", weights_only=True), CPU)
    assert [label_samples() for _ in range(3)] == first


def test_every_choice_has_a_seed_of_its_own():
    """The seed of the run, the purpose, and each number in its place matter."""
    choices = [(0, "order", 0, 0), (1, "order", 0, 0), (2**40, "order", 0, 0), (0, "pixels", 0, 0)]
    choices += [(0, "order", 1, 0), (0, "order", 0, 1), (0, "order", 1, 1), (0, "order", 2, 0), (1, "order", 1, 0)]
    seeds = [derive(*choice) for choice in choices]
    assert len(set(seeds)) == len(choices)
    assert seeds == [derive(*choice) for choice in choices]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**32
    assert torch.equal(*(torch.rand(3, generator=generator(0, "order", 1)) for _ in range(2)))


@pytest.mark.parametrize("seed", [0, derive(0, "task", 1)])
def test_reseed_seeds_python_numpy_and_torch(seed):
    numbers = []
    for each in (seed, seed + 1, seed):
        reseed(each)
        numbers.append(label_samples())
    assert numbers[0] == numbers[2]
    assert not any(a == b for a, b in zip(*numbers[:2], strict=True))


def test_the_seeds_of_a_published_run_do_not_change():
    """Otherwise no result of an earlier version could be repeated."""
    assert (derive(0, "task", 0), derive(3, "order", 2, 1)) == (3914434429263256906, 2115494711928618724)
