import pytest
import torch

from clbench.data.images import Images
from clbench.data.source import Source
from clbench.data.splits import chain, permute, split
from clbench.data.transforms import Permutation
from clbench.errors import ConfigError


def source(classes=10, shape=(1, 3, 3), name="ten"):
    images = Images(torch.zeros(classes, *shape, dtype=torch.uint8), torch.arange(classes))
    return Source(name, images, images, classes)


def classes_of(definitions):
    return [cut.classes for cut in definitions]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]),
        ({"tasks": 2}, [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]),
        ({"tasks": 1}, [tuple(range(10))]),
        ({"tasks": 10}, [(c,) for c in range(10)]),
        ({"classes_per_task": 5}, [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]),
        ({"classes_per_task": 3}, [(0, 1, 2), (3, 4, 5), (6, 7, 8)]),
        ({"classes_per_task": 3, "tasks": 2}, [(0, 1, 2), (3, 4, 5)]),
        ({"classes_per_task": [1, 4, 2]}, [(0,), (1, 2, 3, 4), (5, 6)]),
        ({"classes_per_task": [1, 4, 2], "tasks": 3}, [(0,), (1, 2, 3, 4), (5, 6)]),
    ],
)
def test_split_distributes_the_classes_in_their_natural_order(options, expected):
    data = source()
    definitions = split(data, **options)
    assert classes_of(definitions) == expected
    assert all(cut.source is data and cut.view is None for cut in definitions)


def test_split_by_the_seed_shuffles_the_classes_and_loses_none():
    first = classes_of(split(source(), seed=0, order="seed"))
    assert sorted(c for classes in first for c in classes) == list(range(10))
    assert first == classes_of(split(source(), seed=0, order="seed"))
    assert first != classes_of(split(source(), seed=1, order="seed"))
    assert first != classes_of(split(source()))


def test_the_seed_does_not_change_a_natural_split():
    assert classes_of(split(source(), seed=0)) == classes_of(split(source(), seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order=random: expected natural, seed, or a list of classes, got 'random'."),
        ({"tasks": 0}, "tasks=0: expected an integer >= 1, got 0."),
        ({"tasks": -2, "classes_per_task": 2}, "tasks=-2: expected an integer >= 1"),
        ({"tasks": 11}, "tasks=11: expected at most 10, the number of classes"),
        ({"tasks": 3}, "tasks=3: expected a divisor of the 10 classes"),
        (
            {"tasks": 2, "classes_per_task": [2, 3, 5]},
            "tasks=2: expected one entry per task, got classes_per_task=[2, 3, 5]",
        ),
        (
            {"tasks": 4, "classes_per_task": 3},
            "classes_per_task=[3, 3, 3, 3]: expected numbers >= 1 with a sum of at most 10",
        ),
        ({"classes_per_task": [5, 6]}, "classes_per_task=[5, 6]: expected numbers >= 1 with a sum of at most 10"),
        ({"classes_per_task": [5, 0]}, "classes_per_task=[5, 0]: expected numbers >= 1"),
        ({"classes_per_task": []}, "classes_per_task=[]: expected numbers >= 1"),
        ({"classes_per_task": 11}, "classes_per_task=[11]: expected numbers >= 1 with a sum of at most 10"),
        ({"classes_per_task": 0, "tasks": 2}, "classes_per_task=[0, 0]: expected numbers >= 1"),
    ],
)
def test_split_names_what_cannot_be_distributed(options, message):
    with pytest.raises(ConfigError) as error:
        split(source(), **options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("cut", "name"), [(split, "split"), (permute, "permute")])
def test_split_and_permute_take_one_data_set(cut, name):
    with pytest.raises(ConfigError, match=f"split={name}: expected one data set, got 2.*clbench.data.chain"):
        cut([source(), source()])


def test_the_first_permuted_task_is_not_permuted_by_default():
    """``first="permuted"`` permutes it too, and the later tasks keep their permutations."""
    assert permute(source(), tasks=3)[0].view is None
    permuted = permute(source(), tasks=3, first="permuted")
    assert permuted[0].view is not None
    for identity_first, all_permuted in zip(permute(source(), tasks=3)[1:], permuted[1:], strict=True):
        assert torch.equal(identity_first.view.order, all_permuted.view.order)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4)], ids=["grayscale", "colour"])
def test_every_task_has_its_own_permutation_and_all_classes(shape):
    definitions = permute(source(shape=shape), tasks=6, first="permuted")
    orders = [tuple(cut.view.order.tolist()) for cut in definitions]
    assert all(sorted(order) == list(range(torch.Size(shape).numel())) for order in orders)
    assert len(set(orders)) == 6
    assert classes_of(definitions) == [tuple(range(10))] * 6


def orders(seed, tasks=4):
    return [cut.view.order.tolist() for cut in permute(source(shape=(1, 8, 8)), tasks, seed, first="permuted")]


def test_permutations_depend_on_the_seed_not_the_number_of_tasks():
    assert orders(seed=3) == orders(seed=3)
    assert orders(seed=3, tasks=2) == orders(seed=3)[:2]
    assert all(a != b for a, b in zip(orders(seed=3), orders(seed=4), strict=True))


def test_permute_makes_five_tasks_by_default():
    assert len(permute(source())) == 5
    assert len(permute(source(), tasks=1)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": "same"}, "first=same: expected one of identity, permuted, got 'same'."),
        ({"tasks": 0}, "tasks=0: expected an integer >= 1, got 0."),
    ],
)
def test_permute_names_what_it_cannot_do(options, message):
    with pytest.raises(ConfigError) as error:
        permute(source(), **options)
    assert str(error.value) == message


def test_a_permutation_moves_the_same_pixels_of_every_image():
    view = Permutation(torch.tensor([3, 0, 1, 2, 7, 4, 6, 5]))
    x = torch.arange(16.0).view(2, 2, 2, 2)
    expected = [[3, 0, 1, 2, 7, 4, 6, 5], [11, 8, 9, 10, 15, 12, 14, 13]]
    assert view(x).shape == x.shape
    assert view(x).flatten(1).tolist() == expected
    assert torch.equal(view.to(torch.device("cpu"))(x), view(x))


@pytest.mark.parametrize(("tasks", "names"), [(None, ["a", "b", "c"]), (2, ["a", "b"]), (1, ["a"])])
def test_chain_is_one_task_per_data_set_in_their_order(tasks, names):
    sources = [source(name="a"), source(classes=4, name="b"), source(name="c")]
    definitions = chain(sources, tasks)
    assert [cut.source.name for cut in definitions] == names
    assert classes_of(definitions) == [tuple(range(s.classes)) for s in sources[: len(names)]]


def test_chain_takes_one_data_set_too():
    assert classes_of(chain(source())) == [tuple(range(10))]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (0, "tasks=0: expected an integer >= 1, got 0."),
        (3, "tasks=3: expected at most 2, the number of data sets. Lower it or add a data set."),
    ],
)
def test_chain_has_as_many_tasks_as_data_sets(tasks, message):
    with pytest.raises(ConfigError) as error:
        chain([source(name="a"), source(name="b")], tasks)
    assert str(error.value) == message


def test_chained_images_have_one_shape():
    with pytest.raises(ConfigError) as error:
        chain([source(name="small", shape=(1, 3, 3)), source(name="large", shape=(1, 4, 4))])
    assert "expected data sets with one image shape, got small (1, 3, 3), large (1, 4, 4)" in str(error.value)
