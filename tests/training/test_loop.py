"""The loop over tasks: seeds, the order of callbacks, and what a resumed run counts."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from clbench.errors import ConfigError
from clbench.runs.folder import RunFolder
from clbench.strategies import EWC, NCCL, Strategy
from clbench.training.loop import LoopOptions, TaskLoop, check_mid_task, tasks_to_learn
from tests.conftest import trainer
from tests.strategies.test_baselines import learner, sequence


class Zeros(Strategy):
    """Sets all weights to 0 when a task has ended, so that label 0 is predicted."""

    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            for p in pl_module.parameters():
                p.zero_()


@pytest.fixture
def loop(tmp_path):
    """``loop(strategy, folder)`` returns a loop over two tasks, resumed from the folder."""

    def make(strategy, folder="run", options=None):
        tasks = sequence("domain", 2)
        made = TaskLoop(tasks, learner(tasks), strategy, RunFolder(tmp_path / folder, "abc"), options)
        made.resume()
        return made

    return make


def train(loop, tasks=2):
    """Train and save the remaining tasks before ``tasks``, and return the seed of each."""
    seeds = []

    def make_trainer(index: int, callbacks: list[L.Callback]) -> L.Trainer:
        seeds.append(torch.initial_seed())
        return trainer(callbacks)

    for index in range(loop.next_task, tasks):
        loop.train_task(index, make_trainer)
        loop.save(index)
    return seeds


def test_each_task_and_each_run_has_its_own_random_numbers(loop):
    seeds = {"a": 0, "b": 0, "c": 1}
    first, again, other = (train(loop(Strategy(), folder, LoopOptions(seed))) for folder, seed in seeds.items())
    assert first == again
    assert len({*first, *other}) == 4


def test_a_task_is_evaluated_after_the_strategy_has_ended_it(loop):
    made = loop(Zeros())
    train(made)
    labels = torch.cat([batch.y for batch in made.sequence[0].test_dataloader()[0]])
    assert made.results()["accuracy_matrix"][0][0] == pytest.approx((labels == 0).double().mean().item())


def test_results_do_not_change_while_later_tasks_are_learned(loop):
    made = loop(EWC(lam=1.0))
    train(made, tasks=1)
    results = made.results()
    train(made)
    assert len(results["importance"]) == 1 < len(made.results()["importance"]) == 2


def test_a_resumed_loop_counts_steps_and_seconds_of_the_first(loop):
    first = loop(EWC(lam=1.0))
    first.strategy.seconds, first.evaluation.seconds, first.outside = 1000.0, 2000.0, 4000.0
    first.seconds.load({"train": 500.0, "importance": 1000.0, "evaluation": 2000.0, "shared": 250.0})
    first.mid_task.shared = "key"
    train(first, tasks=1)
    second = loop(EWC(lam=1.0))
    assert list(second.remaining) == [1]
    assert second.logs.step == first.logs.step == 4
    assert second.results()["shared_first_task"] == "key"
    for made in (first, second):
        seconds = made.results()["seconds"]
        assert all(
            low < seconds[k] < low + 100 for k, low in {"train": 500, "importance": 1000, "evaluation": 2000}.items()
        )
        assert seconds["shared"] == 250
        parts = seconds["train"] + seconds["importance"] + seconds["evaluation"]
        assert seconds["total"] == pytest.approx(made.outside + parts)


def test_a_loop_starts_with_a_strategy_that_remembers_nothing(loop):
    strategy = EWC(lam=1.0)
    train(loop(strategy, "a"))
    assert loop(strategy, "b").strategy.penalty is None


def test_the_number_of_tasks_to_learn_is_at_most_all():
    assert [tasks_to_learn(number, 3) for number in (None, 1, 3)] == [3, 1, 3]
    with pytest.raises(ConfigError, match="stop_after_task=4: expected an integer from 1 to 3"):
        tasks_to_learn(4, 3)


def test_state_per_process_is_refused_in_a_mid_task_checkpoint():
    class Differs(Strategy):
        per_process = True

    check_mid_task(5, Differs(), processes=1)
    check_mid_task(5, NCCL(), processes=2)
    with pytest.raises(ConfigError, match="save_every=5: Differs has different state in each of the 2 processes"):
        check_mid_task(5, Differs(), processes=2)
