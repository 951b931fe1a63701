import numpy as np
import pytest

from clbench.runs.plots import accuracy_matrix, accuracy_over_tasks, accuracy_within_tasks

INSIDE = [{"task": 0, "step": 1, "accuracy": [0.5, 0.1]}, {"task": 1, "step": 1, "accuracy": [0.4, 0.6]}]


@pytest.mark.parametrize(("tasks", "expected"), [(3, ["1", "2", "3"]), (30, ["1", "4", "7"])])
def test_figures_count_tasks_from_1(tasks, expected):
    r = np.random.default_rng(0).random((tasks, tasks))
    axes = accuracy_matrix(r, "title").axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()][:3] == expected
    assert [int(tick) for tick in axes.get_xticks()][:3] == [int(number) - 1 for number in expected]
    over = accuracy_over_tasks(r, "title").axes[0]
    assert over.get_xticks()[0] == 1
    lines = {line.get_label(): line.get_xdata()[0] for line in over.lines}
    assert (lines["task 1"], lines["task 2"], lines[f"task {tasks}"], lines["mean so far"]) == (1, 2, tasks, 1)


def test_the_figure_of_evaluations_inside_tasks_counts_from_1():
    lines = accuracy_within_tasks(np.eye(2), INSIDE, "title").axes[0].get_legend_handles_labels()[1]
    assert lines == ["task 1", "task 2"]
