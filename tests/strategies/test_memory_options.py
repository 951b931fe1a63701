"""The size of the memory for all tasks together, and replay from earlier tasks only."""

from __future__ import annotations

import pytest

import clbench
from clbench import DER, ER, DERpp
from clbench.errors import ConfigError
from clbench.experiment.build import build
from tests.conftest import stopped_after, trainer

SHORT = ("data.tasks=3", "data.examples_per_task=60", "epochs=1")


@pytest.mark.parametrize("make", [ER, DER, DERpp])
def test_the_total_is_shared_and_shrinks_as_tasks_come(composed, make):
    sequence, learner, _ = build(composed(*SHORT[:2]))
    strategy, shares = make(memory_total=24), []
    for task in sequence:
        trainer([strategy]).fit(learner, datamodule=task)
        shares.append(strategy.memory.examples["task"][strategy.memory.filled].bincount(minlength=3).tolist())
    assert [sum(share) for share in shares] == [24, 24, 24]
    assert shares[0] == [24, 0, 0]
    assert shares[1][2] == 0 and shares[1][1] > 0 and shares[2][2] > 0
    assert shares[0][0] > shares[1][0] >= shares[2][0] > 0


def test_a_total_of_memory_times_tasks_is_the_default(run):
    whole, total = ("strategy=er", "memory=20", *SHORT), ("strategy=er", "strategy.memory_total=60", *SHORT)
    assert run(*whole, folder="a")["accuracy_matrix"] == run(*total, folder="b")["accuracy_matrix"]


@pytest.mark.parametrize("buffer", ["reservoir", "ring"])
@pytest.mark.parametrize("make", [ER, DER, DERpp])
def test_replay_from_earlier_tasks_draws_no_current_example(composed, make, buffer):
    sequence, learner, _ = build(composed(*SHORT[:2]))
    strategy, drawn = make(memory=20, buffer=buffer, memory_from="earlier"), {0: [], 1: [], 2: []}
    recall = strategy.recall

    def record(number, among=None):
        found = recall(number, among)
        drawn[strategy._index].append(set() if found is None else set(found[1]["task"].tolist()))
        return found

    strategy.recall = record
    for task in sequence:
        trainer([strategy]).fit(learner, datamodule=task)
    assert set().union(*drawn[0]) == set()
    assert all(tasks == {0} for tasks in drawn[1])
    assert set().union(*drawn[2]) == {0, 1}


@pytest.mark.parametrize("options", [("strategy.memory_total=30",), ("strategy.memory_from=earlier",)])
def test_a_run_with_these_options_resumes_bit_for_bit(run, tmp_path, options):
    options = ("strategy=derpp", *options, *SHORT)
    whole = run(*options, folder="whole")
    folder = stopped_after(0, tmp_path / "whole", tmp_path / "again")
    assert clbench.run([*options, "trainer=cpu"], folder)["accuracy_matrix"] == whole["accuracy_matrix"]


def test_the_state_knows_what_the_current_task_has_stored(composed):
    sequence, learner, _ = build(composed(*SHORT[:2]))
    strategy, again = ER(memory=20, memory_from="earlier"), ER(memory=20, memory_from="earlier")
    for task in (sequence[0], sequence[1]):
        trainer([strategy]).fit(learner, datamodule=task)
    again.attach(learner, sequence)
    again.load_state_dict(strategy.state_dict())
    assert 0 < again.memory.slots_of_earlier_tasks().sum() < again.memory.filled.sum()
    assert again.memory.slots_of_earlier_tasks().equal(strategy.memory.slots_of_earlier_tasks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy.memory_total=0"], "strategy.memory_total=0: expected an integer >= 1"),
        (
            ["strategy.memory_total=9", "strategy.buffer=ring"],
            "strategy.memory_total=9 with strategy.buffer=ring: expected a",
        ),
        (["strategy.memory_from=later"], "strategy.memory_from=later: expected one of all, earlier"),
    ],
)
def test_wrong_options_of_the_memory_are_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run("strategy=er", *options, *SHORT)
