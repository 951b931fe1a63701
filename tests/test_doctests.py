"""The examples in the docstrings of public names run, and every public class has one."""

from __future__ import annotations

import doctest
import inspect
import sys
from importlib import import_module
from typing import Any

import pytest

PACKAGES = ("clbench", "clbench.data", "clbench.importance", "clbench.metrics", "clbench.nets", "clbench.strategies")


def public() -> dict[str, Any]:
    """Return the public classes and functions of clbench by dotted name, each once."""
    found: dict[str, Any] = {}
    for package in map(import_module, PACKAGES):
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(f"{value.__module__}.{value.__qualname__}", value)
    return found


PUBLIC = public()


def examples_of(value: Any) -> list[doctest.DocTest]:
    """Return the examples of a name and its methods, as a reader sees them after ``import torch; from torch import nn``."""
    module = sys.modules[value.__module__]
    names = {**vars(import_module("clbench")), "torch": import_module("torch"), "nn": import_module("torch.nn")}
    found = doctest.DocTestFinder().find(value, module=module, globs=names | vars(module))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if examples_of(value)])
def test_the_example_of_a_public_name_prints_what_it_states(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in examples_of(PUBLIC[name]):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_a_public_class_has_an_example(name):
    assert examples_of(PUBLIC[name])
