import torch
from torch import nn

from clbench.params import move_like, size_in_bytes, snapshot, trainable, zeros_like


class Tied(nn.Module):
    """Two names for one weight, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(3, 2).requires_grad_(False)


def test_trainable_has_no_frozen_and_no_repeated_parameters():
    """A parameter that two layers share is listed once."""
    assert set(trainable(Tied())) == {"first.weight", "first.bias"}


def test_trainable_gives_the_live_parameters():
    module = nn.Linear(2, 1)
    assert all(p is module.get_parameter(name) for name, p in trainable(module).items())


def test_a_snapshot_does_not_follow_the_parameters():
    module = nn.Linear(2, 1).double()
    before = module.weight.tolist()
    copies = snapshot(trainable(module))
    with torch.no_grad():
        module.weight += 1
    assert copies["weight"].tolist() == before
    assert copies["weight"].dtype == torch.double
    assert not copies["weight"].requires_grad


def test_zeros_like_keeps_names_shapes_and_dtypes():
    """The zeros need no gradient."""
    params = {"a": nn.Parameter(torch.ones(2, 3, dtype=torch.double)), "b": torch.ones((), dtype=torch.half)}
    zeros = zeros_like(params)
    assert {name: (z.shape, z.dtype) for name, z in zeros.items()} == {n: (p.shape, p.dtype) for n, p in params.items()}
    assert all((z == 0).all() and not z.requires_grad for z in zeros.values())


def test_placed_like_takes_the_device_of_the_same_name():
    """It keeps the dtype, and tensors of other names stay where they are."""
    params = {"here": torch.ones(2, dtype=torch.double), "other": torch.ones(2)}
    moved = move_like(params, {"here": torch.empty(2, device="meta"), "unknown": torch.empty(1)})
    assert set(moved) == {"here", "other"}
    assert (moved["here"].device.type, moved["here"].dtype) == ("meta", torch.double)
    assert moved["other"] is params["other"]


def test_size_in_bytes_counts_elements_times_their_size():
    assert size_in_bytes({"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.double)}) == 6 * 4 + 5 * 8
