import pytest
import torch

from clbench.data.batches import Batches, Part, Pixels
from clbench.data.images import Images
from clbench.data.transforms import Permutation
from clbench.errors import ConfigError

SHAPE = (1, 2, 3)


def part(examples, task=0, view=None, pixels=None, base=0):
    """Return a part with labels counted from ``base``, unordered rows, and pixels equal to the row."""
    draw = torch.Generator().manual_seed(task)
    x = torch.randint(0, 256, (2 * examples, *SHAPE), generator=draw, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(2 * examples)
    rows = torch.randperm(2 * examples, generator=draw)[:examples]
    y = base + torch.arange(examples)
    return Part(Images(x, torch.zeros(2 * examples)), rows, y, task, pixels or Pixels(), view)


def labels(batches):
    return [batch.y.tolist() for batch in batches]


def flat(lists):
    return [entry for entries in lists for entry in entries]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11])
@pytest.mark.parametrize("shuffle", [None, (0, 1)], ids=["in order", "shuffled"])
@pytest.mark.parametrize("sizes", [[10], [4, 1, 5]], ids=["one part", "joint"])
def test_an_epoch_visits_every_example_exactly_once(sizes, shuffle, batch_size):
    parts = [part(size, task, base=sum(sizes[:task])) for task, size in enumerate(sizes)]
    batches = Batches(parts, batch_size, shuffle)
    for _ in range(2):
        epoch = labels(batches)
        assert sorted(flat(epoch)) == list(range(10))
        assert len(epoch) == len(batches)
        assert [len(y) for y in epoch[:-1]] == [batch_size] * (len(batches) - 1)


def test_every_epoch_has_a_new_order():
    batches = Batches([part(20)], 4, (0, 1))
    epochs = [flat(labels(batches)) for _ in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


def noise(x, seed):
    return torch.randint(0, 256, x.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [[10], [4, 1, 5]], ids=["one part", "joint"])
@pytest.mark.parametrize("given", range(9))
def test_a_loaded_state_resumes_with_the_next_batch(sizes, given):
    def batches():
        parts = [part(size, task, base=sum(sizes[:task])) for task, size in enumerate(sizes)]
        return Batches(parts, 3, (0, 1), augment=noise)

    def three_epochs(loader):
        while loader.epoch < 3:
            yield from loader

    whole = list(three_epochs(batches()))
    stopped, goes_on = batches(), batches()
    for _, batch in zip(range(given), three_epochs(stopped), strict=False):
        assert len(batch.y)
    goes_on.load_state_dict(stopped.state_dict())
    rest = list(three_epochs(goes_on))
    assert [b.y.tolist() for b in rest] == [b.y.tolist() for b in whole[given:]]
    assert all(torch.equal(b.x, w.x) for b, w in zip(rest, whole[given:], strict=True))


def test_each_run_task_epoch_rank_batch_and_part_augments_apart():
    seeds = []

    def record(x, seed):
        seeds.append(seed)
        return x

    for shuffle in ((0, 1), (0, 2), (3, 1)):
        for rank in range(2):
            batches = Batches([part(8), part(8, 1, base=8)], 8, shuffle, rank, world=2, augment=record)
            for _ in range(2):
                labels(batches)
    assert len(set(seeds)) == len(seeds) > 3 * 2 * 2 * 2


def test_the_order_depends_on_the_seed_and_the_task():
    def epochs(shuffle):
        batches = Batches([part(20)], 4, shuffle)
        return [labels(batches) for _ in range(2)]

    assert epochs((0, 1)) == epochs((0, 1))
    assert epochs((0, 1)) != epochs((2, 1))
    assert epochs((0, 1)) != epochs((0, 2))


def test_batches_in_order_are_not_augmented():
    only = part(7)
    for plain, batch in zip(Batches([only], 3), Batches([only], 3, augment=noise), strict=True):
        assert torch.equal(plain.x, batch.x)


def test_the_order_does_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    labels(Batches([part(20)], 4, (0, 1)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_shuffling_the_examples_come_in_order_every_time():
    batches = Batches([part(7)], 3)
    assert labels(batches) == labels(batches) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("batch_size", [2, 4, 16])
@pytest.mark.parametrize("examples", [10, 11, 16, 17])
@pytest.mark.parametrize("sizes", ["one part", "joint"])
def test_training_ranks_take_equal_steps_and_share_the_examples(examples, batch_size, sizes):
    parts = [part(examples)] if sizes == "one part" else [part(4), part(examples - 4, 1, base=4)]
    ranks = [Batches(parts, batch_size, (0,), rank, world=2) for rank in range(2)]
    epochs = [labels(batches) for batches in ranks]
    assert [len(y) for y in epochs[0]] == [len(y) for y in epochs[1]]
    assert len(epochs[0]) == len(ranks[0]) == len(ranks[1])
    seen = flat(epochs[0]) + flat(epochs[1])
    assert len(seen) == len(set(seen)) == examples - examples % 2


def test_ranks_take_equal_steps_with_a_last_batch_of_one_example():
    ranks = [Batches([part(9)], 4, (0,), rank, world=2) for rank in range(2)]
    assert len(labels(ranks[0])) == len(labels(ranks[1]))


def test_training_ranks_do_not_always_leave_out_the_same_example():
    batches = [Batches([part(5)], 2, (0,), rank, world=2) for rank in range(2)]
    missing = {min({0, 1, 2, 3, 4} - {*flat(labels(batches[0])), *flat(labels(batches[1]))}) for _ in range(10)}
    assert len(missing) > 1


@pytest.mark.parametrize(("examples", "world", "batch_size"), [(7, 2, 4), (7, 2, 3), (9, 4, 4), (5, 3, 100)])
def test_held_out_examples_are_shared_by_the_ranks_without_loss(examples, world, batch_size):
    seen = [flat(labels(Batches([part(examples)], batch_size, None, rank, world))) for rank in range(world)]
    assert sorted(flat(seen)) == list(range(examples))


def test_two_ranks_together_train_on_the_batches_of_one():
    one = Batches([part(12)], 4, (5,))
    two = [Batches([part(12)], 4, (5,), rank, world=2) for rank in range(2)]
    for whole, first, second in zip(labels(one), labels(two[0]), labels(two[1]), strict=True):
        assert set(whole) == {*first, *second}


def test_one_part_carries_its_task_as_a_number():
    (batch,) = Batches([part(4, task=3)], 10)
    assert batch.task == 3
    assert isinstance(batch.task, int)


def test_a_joint_batch_has_input_label_and_task_of_every_example():
    orders = [None, torch.tensor([5, 3, 1, 0, 2, 4]), torch.tensor([1, 0, 2, 3, 5, 4])]
    parts = [part(5, k, o if o is None else Permutation(o), base=100 * k) for k, o in enumerate(orders)]
    seen = 0
    for batch in Batches(parts, 4, (0,)):
        assert batch.x.shape == (len(batch.y), *SHAPE)
        for x, y, task in zip(batch.x, batch.y.tolist(), batch.task.tolist(), strict=True):
            assert task == y // 100
            pixels = parts[task].images.x[parts[task].rows[y % 100]].flatten().tolist()
            order = range(6) if orders[task] is None else orders[task].tolist()
            assert x.flatten().tolist() == pytest.approx([pixels[k] / 255 for k in order], rel=1e-6)
            seen += 1
    assert seen == 15


def test_joint_batches_mix_the_parts():
    parts = [part(50, task, base=100 * task) for task in (3, 5)]
    tasks = [set(batch.task.tolist()) for batch in Batches(parts, 20, (0,))]
    assert tasks == [{3, 5}] * 5


def test_parts_that_compete_in_one_task_carry_it_as_a_number():
    parts = [part(4, task=2), part(4, task=2, base=4)]
    assert [batch.task for batch in Batches(parts, 3, (0,))] == [2, 2, 2]


def test_one_part_has_the_input_of_every_label():
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    only = part(6, view=Permutation(order))
    for batch in Batches([only], 4, (0,)):
        expected = only.images.x[only.rows[batch.y]].flatten(1)[:, order].view(-1, *SHAPE) / 255
        torch.testing.assert_close(batch.x, expected)


def test_pixels_are_scaled_and_normalised_per_channel():
    x = torch.tensor([[0, 8], [16, 4]], dtype=torch.uint8).view(1, 2, 1, 2)
    scaled = Pixels(scale=16)(x)
    assert scaled.dtype == torch.get_default_dtype()
    assert scaled.flatten().tolist() == [0, 0.5, 1, 0.25]
    assert Pixels(16, (0.5, 0.25), (0.5, 0.25))(x).flatten().tolist() == [-1, 0, 3, 0]
    assert x.flatten().tolist() == [0, 8, 16, 4]


def test_a_batch_is_shared_equally_by_all_processes():
    with pytest.raises(ConfigError, match="batch_size=5: expected a multiple of the 2 processes that share a batch"):
        Batches([part(20)], 5, (0, 1), world=2)
