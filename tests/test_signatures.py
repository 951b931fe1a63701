"""No function of the package has many parameters, except for public ones."""

from __future__ import annotations

import ast
from pathlib import Path

import clbench

MANY = 7
LONGEST_TEST_NAME = 60
PUBLIC = {
    ("data/sequence.py", "TaskSequence.__init__"),
    ("learner.py", "Learner.__init__"),
    ("strategies/nccl.py", "NCCL.__init__"),
    ("importance/fisher.py", "fisher"),
    ("strategies/ewc.py", "EWC.__init__"),
    ("strategies/penalty.py", "QuadraticStrategy.__init__"),
    ("strategies/rehearsal.py", "RehearsalStrategy.__init__"),
}
"""Public functions, whose parameters are options."""


def signatures(tree: ast.AST, prefix: str = ""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from signatures(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            yield f"{prefix}{node.name}", len(names) - (names[:1] in (["self"], ["cls"]))
            yield from signatures(node, prefix)


def test_no_internal_function_has_more_than_seven_parameters():
    """Functions that a user calls may have more."""
    root = Path(clbench.__file__).parent
    long = {
        (file.relative_to(root).as_posix(), name)
        for file in root.glob("**/*.py")
        for name, number in signatures(ast.parse(file.read_text(encoding="utf-8")))
        if number > MANY
    }
    assert long <= PUBLIC


def test_no_test_name_is_longer_than_60_characters():
    """What a name leaves out belongs in the docstring of the test."""
    folder = Path(__file__).parent
    long = {
        f"{file.relative_to(folder).as_posix()}: {node.name}"
        for file in folder.glob("**/test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if len(node.name) > LONGEST_TEST_NAME
    }
    assert not long, f"expected test names of at most {LONGEST_TEST_NAME} characters: {sorted(long)}"
