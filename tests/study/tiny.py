"""A small study for the tests."""

from __future__ import annotations

from clbench.study.parse import parsed

TINY = {
    "title": "",
    "source": "",
    "text": "",
    "seconds": 1,
    "metrics": {"accuracy": "average_accuracy", "first": "accuracy_matrix.-1.0"},
    "seeds": [0, 1],
    "quick": {"overrides": ["epochs=1"], "seeds": [0]},
}
GRID = {
    "name": "row",
    "overrides": ["strategy=ewc"],
    "grid": {"lam": [1.0, 10.0, 100.0]},
    "select": [
        {"by": "average_accuracy", "on": "test", "seeds": [7], "overrides": ["data.tasks=3"], "extend": {"lam": 10}}
    ],
}


def study_of(**row):
    return parsed("tiny", {**TINY, "rows": [{**GRID, **row}]})
