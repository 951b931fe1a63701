import pytest
import torch

from clbench.data.scenario import Scenario
from clbench.errors import ConfigError
from clbench.nets import MultiHead, SlicedHead

TASK, SINGLE = Scenario("task"), Scenario("task", "single")
DOMAIN, CLASS = Scenario("domain", "single"), Scenario("class", "single")
SIZES = [2, 3, 2]


@pytest.mark.parametrize(
    ("scenario", "sizes", "offsets"),
    [(TASK, SIZES, [0, 0, 0]), (DOMAIN, [2, 2, 2], [0, 0, 0]), (CLASS, SIZES, [0, 2, 5])],
)
def test_only_class_incremental_labels_have_an_offset(scenario, sizes, offsets):
    """The offset is the number of classes of the earlier tasks."""
    assert [scenario.offset(sizes, task) for task in range(3)] == offsets


@pytest.mark.parametrize(("scenario", "contexts"), [(TASK, [0, 1, 2]), (DOMAIN, [0, 1, 2]), (CLASS, [1, 1, 1])])
def test_a_batch_carries_its_own_task_or_the_newest_one(scenario, contexts):
    """It carries the newest task in the class-incremental scenario, where all classes seen compete."""
    assert [scenario.context(on, after=1) for on in range(3)] == contexts


@pytest.mark.parametrize(
    ("scenario", "sizes", "slices"),
    [
        (SINGLE, SIZES, [(0, 2), (2, 5), (5, 7)]),
        (DOMAIN, [2, 2, 2], [(0, 2), (0, 2), (0, 2)]),
        (CLASS, SIZES, [(0, 2), (0, 5), (0, 7)]),
    ],
)
def test_the_columns_that_compete(scenario, sizes, slices):
    assert scenario.slices(sizes) == slices
    head = scenario.build_head(4, sizes)
    assert isinstance(head, SlicedHead)
    assert head.slices == tuple(slices)


def test_task_incremental_builds_a_head_for_every_task():
    head = TASK.build_head(4, SIZES)
    assert isinstance(head, MultiHead)
    assert [layer.out_features for layer in head.heads] == SIZES


@pytest.mark.parametrize("scenario", [TASK, DOMAIN, CLASS])
def test_every_label_is_an_output_that_competes_in_its_task(scenario):
    sizes = [2, 2, 2]
    head = scenario.build_head(4, sizes)
    for after in range(3):
        for on in range(after + 1):
            outputs = head(torch.zeros(1, 4), scenario.context(on, after)).shape[1]
            assert scenario.offset(sizes, on) + sizes[on] <= outputs


@pytest.mark.parametrize(("scenario", "shared"), [(TASK, False), (SINGLE, False), (DOMAIN, True), (CLASS, False)])
def test_only_domain_incremental_tasks_share_their_outputs(scenario, shared):
    """The first task then trains the outputs of the later tasks."""
    assert scenario.shares_outputs is shared


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("tasks", "multi", "scenario=tasks: expected one of task, domain, class."),
        ("task", "both", "scenario.head=both: expected multi or single with scenario=task."),
        ("domain", "multi", "scenario.head=multi: expected single with scenario=domain."),
        ("class", "multi", "scenario.head=multi: expected single with scenario=class."),
    ],
)
def test_an_unknown_scenario_or_head_is_refused(name, head, message):
    with pytest.raises(ConfigError) as error:
        Scenario(name, head)
    assert str(error.value) == message


def test_domain_incremental_tasks_have_equally_many_classes():
    with pytest.raises(ConfigError, match=r"got \[2, 3, 2\]. Make them equal, or use scenario=task"):
        DOMAIN.check(SIZES)
    DOMAIN.check([2, 2, 2])
    TASK.check(SIZES)
    CLASS.check(SIZES)
