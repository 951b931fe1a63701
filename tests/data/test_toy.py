from functools import partial

import pytest
import torch

from clbench.data import TaskSequence, chain
from clbench.data.toy import OPERATIONS, BitOperation
from clbench.errors import ConfigError


@pytest.mark.parametrize(
    ("op", "targets"),
    [
        ("and", [0, 0, 0, 1]),
        ("or", [0, 1, 1, 1]),
        ("xor", [0, 1, 1, 0]),
        ("nand", [1, 1, 1, 0]),
        ("nor", [1, 0, 0, 0]),
        ("xnor", [1, 0, 0, 1]),
    ],
)
def test_two_bits_have_the_truth_table_of_the_operation(op, targets):
    table = BitOperation(op)
    assert table.data.tolist() == [[[0, 0]], [[0, 1]], [[1, 0]], [[1, 1]]]
    assert table.targets == targets


@pytest.mark.parametrize("bits", [3, 5])
def test_xor_of_many_bits_is_their_parity_and_xnor_its_opposite(bits):
    parity = [bin(row).count("1") % 2 for row in range(2**bits)]
    assert BitOperation("xor", bits).targets == parity
    assert BitOperation("xnor", bits).targets == [1 - p for p in parity]


def test_every_operation_trains_and_tests_on_all_its_rows():
    """Each operation is a task whose training and test parts are the whole truth table."""
    sequence = TaskSequence([partial(BitOperation, op, 3) for op in OPERATIONS], chain, validation=0, scale=1)
    assert sequence.shape == (1, 1, 3)
    assert sequence.sizes == [2] * 6
    for task in sequence:
        for loader in (task.importance_dataloader(), task.test_dataloader()[task.index]):
            (batch,) = loader
            assert batch.x.flatten(1).tolist() == [[float(c) for c in f"{row:03b}"] for row in range(8)]
            assert batch.y.tolist() == BitOperation(list(OPERATIONS)[task.index], 3).targets


@pytest.mark.parametrize(("options", "message"), [({"op": "imp"}, "op=imp"), ({"op": "and", "bits": 1}, "bits=1")])
def test_an_operation_that_does_not_exist_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        BitOperation(**options)


def test_bits_stay_exact():
    (batch,) = TaskSequence(partial(BitOperation, "or"), chain, validation=0, scale=1)[0].train_dataloader()
    assert set(batch.x.flatten().tolist()) == {0.0, 1.0}
    assert batch.x.dtype == torch.get_default_dtype()


def test_a_code_is_added_to_every_row_and_changes_no_target():
    table = BitOperation("or", code=[1])
    assert table.data.tolist() == [[[0, 0, 1]], [[0, 1, 1]], [[1, 0, 1]], [[1, 1, 1]]]
    assert table.targets == BitOperation("or").targets
