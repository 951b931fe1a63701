"""Measure the layout of clbench: files, imports between them, layers, long functions, and files that a run enters.

    python scripts/measure_layout.py [--run] [--json] [--root DIR]

The counts come from the syntax trees, so clbench is not imported. They are printed next to the targets of the design.
`--run` also trains two tasks of two steps in another process and counts the files whose functions it called.

A unit is a module or folder directly in src/clbench. An arrow is a pair "a imports b", counted once. Imports inside functions
count. Imports under `if TYPE_CHECKING:` are counted separately and excluded from all other numbers.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "clbench"
MOST_PARAMETERS = 7
MOST_STATEMENTS = 50
RUN = ["data.tasks=2", "steps=2", "trainer=cpu"]
TARGETS = {
    "loose_modules": 6,
    "layers": 9,
    "unit_arrows": 75,
    "doubled_names": 1,
    "circles": 0,
    "upward_imports": 0,
}

# Runs in the child process and records the files of called functions. A code object without CO_OPTIMIZED (0x1) is the body of a
# module or class, which an import executes. Comprehensions in a module's body are not functions either.
RECORDER = """
import json, runpy, sys, threading
folder, answer, sys.argv[1:] = sys.argv[1], sys.argv[2], sys.argv[3:]
seen, entered = set(), set()
def record(frame, event, argument):
    code = frame.f_code
    if event == "call" and code not in seen:
        seen.add(code)
        name = code.co_filename
        if name.startswith(folder) and code.co_flags & 1 and (code.co_name == "<lambda>" or code.co_name[0] != "<"):
            entered.add(name)
threading.setprofile(record)
sys.setprofile(record)
try:
    runpy.run_module("clbench.train", run_name="__main__")
finally:
    sys.setprofile(None)
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(sorted(entered), file)
"""


class Imports(NamedTuple):
    """Import arrows between modules: those that are executed, and those that only a type checker reads."""

    real: set[tuple[str, str]]
    typing: set[tuple[str, str]]


def module_name(path: Path, source: Path) -> str:
    """Return the dotted name of the module at `path`, for example clbench.data.images."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(test: ast.expr) -> bool:
    """Return whether a condition is TYPE_CHECKING or typing.TYPE_CHECKING."""
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"


def import_statements(node: ast.AST, typing: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield every import statement below `node`, and whether it is under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, typing
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for statement in child.body:
                yield from import_statements(ast.Module([statement], []), True)
            for statement in child.orelse:
                yield from import_statements(ast.Module([statement], []), typing)
        else:
            yield from import_statements(child, typing)


def imported(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool, modules: set[str]) -> Iterator[str]:
    """Yield the modules of clbench that a statement imports: `from a import b` is a.b if that is a module, otherwise a."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names if alias.name in modules)
        return
    base = statement.module or ""
    if statement.level:
        parents = module.split(".")
        package = parents[: len(parents) - statement.level + is_package]
        base = ".".join([*package, *([base] if base else [])])
    for alias in statement.names:
        name = f"{base}.{alias.name}"
        if name in modules or base in modules:
            yield name if name in modules else base


def read_imports(trees: dict[str, ast.Module], packages: set[str]) -> Imports:
    """Return the arrows between all modules."""
    found = Imports(set(), set())
    for module, tree in trees.items():
        for statement, typing in import_statements(tree):
            for other in imported(statement, module, module in packages, set(trees)):
                if other != module:
                    (found.typing if typing else found.real).add((module, other))
    return Imports(found.real, found.typing - found.real)


def unit(module: str) -> str:
    """Return the unit of a module: clbench.data for clbench.data.images, clbench for the package's own __init__."""
    return ".".join(module.split(".")[:2])


def between_units(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the arrows between different units."""
    return {(unit(a), unit(b)) for a, b in arrows if unit(a) != unit(b)}


def components(nodes: Iterable[str], arrows: set[tuple[str, str]]) -> list[set[str]]:
    """Return the strongly connected components (Tarjan 1972), each after the components that it imports."""
    following = defaultdict(list)
    for a, b in sorted(arrows):
        following[a].append(b)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in following[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            start = stack.index(node)
            found.append(set(stack[start:]))
            del stack[start:]

    for node in sorted(nodes):
        if node not in index:
            visit(node)
    return found


def longest_chain(nodes: Iterable[str], arrows: set[tuple[str, str]]) -> list[str]:
    """Return the longest chain of units, each importing the next. A circle counts as one link."""
    best: dict[int, list[str]] = {}
    place: dict[str, int] = {}
    for number, component in enumerate(components(nodes, arrows)):
        place.update(dict.fromkeys(component, number))
        below = {place[b] for a, b in arrows if a in component and place[b] != number}
        longest = max((best[n] for n in sorted(below)), key=len, default=[])
        best[number] = [" + ".join(sorted(component)), *longest]
    return max(best.values(), key=len, default=[])


def read_layers(project: Path) -> list[list[tuple[str, bool]]]:
    """Return the layers contract, top first: the modules of each row and whether they may not import each other."""
    contracts = tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {}).get("importlinter", {})
    for contract in contracts.get("contracts", []):
        if contract.get("type") == "layers":
            prefix = f"{contract['containers'][0]}." if contract.get("containers") else ""
            rows = []
            for row in contract["layers"]:
                names = row.replace("|", ":").split(":")
                rows.append([(prefix + name.strip().strip("()").strip(), "|" in row) for name in names])
            return rows
    return []


def upward_imports(rows: list[list[tuple[str, bool]]], arrows: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the arrows that go to a higher row, or to another module of a row whose modules are independent."""
    depth = {name: (number, independent) for number, row in enumerate(rows) for name, independent in row}

    def layer(module: str) -> str | None:
        while module not in depth and "." in module:
            module = module.rpartition(".")[0]
        return module if module in depth else None

    found = []
    for a, b in sorted(arrows):
        x, y = layer(a), layer(b)
        if x is None or y is None or x == y:
            continue
        (from_row, independent), (to_row, _) = depth[x], depth[y]
        if to_row < from_row or (to_row == from_row and independent):
            found.append((a, b))
    return found


def functions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function and method with its location and name."""
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{node.lineno} {node.name}", node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters without self and cls, with `*args` and `**kwargs` as one each."""
    a = function.args
    named = [p.arg for p in (*a.posonlyargs, *a.args)]
    return len(named) + len(a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg) - (named[:1] in (["self"], ["cls"]))


def statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the statements of a body and of nested functions, without its docstring."""
    count = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    return count - (ast.get_docstring(function, clean=False) is not None)


def entered_files(root: Path) -> list[str]:
    """Train two tasks of two steps in another process and return the files whose functions it called."""
    folder = root / "src" / PACKAGE
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place, "entered.json")
        command = [sys.executable, "-c", RECORDER, f"{folder}{os.sep}", str(answer), *RUN, f"output_dir={place}/run"]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the run failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return [str(Path(name).relative_to(folder)) for name in json.loads(answer.read_text(encoding="utf-8"))]


def size(files: list[Path]) -> dict[str, int]:
    """Return the number of files and of their lines."""
    return {"files": len(files), "lines": sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)}


def measure(root: Path, run: bool = False) -> dict[str, Any]:
    """Return all counts of the checkout at `root`, and the counted names under `names`."""
    source = root / "src"
    files = sorted((source / PACKAGE).rglob("*.py"))
    trees = {module_name(f, source): ast.parse(f.read_text(encoding="utf-8"), str(f)) for f in files}
    imports = read_imports(trees, {module_name(f, source) for f in files if f.name == "__init__.py"})
    units = {unit(m) for m in trees}
    arrows = between_units(imports.real)
    loose = sorted(f.name for f in files if f.parent.name == PACKAGE)
    folders = sorted({f.relative_to(source / PACKAGE).parts[0] for f in files} - set(loose))
    stems = Counter(f.stem for f in files if not f.stem.startswith("__"))
    doubled = {s: [str(f.relative_to(source / PACKAGE)) for f in files if f.stem == s] for s in stems if stems[s] > 1}
    chain = longest_chain(units, arrows)
    circles = [sorted(c) for c in components(units, arrows) if len(c) > 1]
    file_circles = [sorted(c) for c in components(trees, imports.real) if len(c) > 1]
    rows = read_layers(root / "pyproject.toml")
    upward = upward_imports(rows, imports.real)
    listed = {name for row in rows for name, _ in row}
    many = [f"{name} ({parameters(f)})" for name, f in functions(trees) if parameters(f) > MOST_PARAMETERS]
    long = [f"{name} ({statements(f)})" for name, f in functions(trees) if statements(f) > MOST_STATEMENTS]
    counts: dict[str, Any] = {
        "loose_modules": len(loose),
        "folders": len(folders),
        **{f"{key}_{PACKAGE}": value for key, value in size(files).items()},
    }
    for folder in ("src", "scripts", "tests"):
        for key, value in size(sorted((root / folder).rglob("*.py"))).items():
            counts[f"{key}_{folder}"] = value
    counts |= {
        "importance_files": sum(m.startswith(f"{PACKAGE}.importance") for m in trees),
        "unit_arrows": len(arrows),
        "unit_arrows_without_init": sum(PACKAGE not in pair for pair in arrows),
        "unit_arrows_typing_only": len(between_units(imports.typing) - arrows),
        "file_arrows": len(imports.real),
        "file_arrows_typing_only": len(imports.typing),
        "layers": len(chain),
        "contract_rows": len(rows),
        "circles": len(circles),
        "file_circles": len(file_circles),
        "doubled_names": len(doubled),
        "upward_imports": len(upward),
        "units_not_in_contract": len(units - listed - {PACKAGE}),
        "functions_many_parameters": len(many),
        "functions_many_statements": len(long),
    }
    names: dict[str, Any] = {
        "loose_modules": loose,
        "folders": folders,
        "layers": chain,
        "circles": circles,
        "file_circles": file_circles,
        "doubled_names": doubled,
        "upward_imports": [f"{a} -> {b}" for a, b in upward],
        "units_not_in_contract": sorted(units - listed - {PACKAGE}),
        "functions_many_parameters": many,
        "functions_many_statements": long,
    }
    if run:
        entered = entered_files(root)
        counts["entered_files"] = len(entered)
        names["entered_files"] = entered
    return {"counts": counts, "targets": TARGETS, "names": names}


def table(found: dict[str, Any]) -> str:
    """Return the counts with their targets, followed by the names."""
    lines = [f"{'':32}{'measured':>10}{'target':>10}"]
    for key, value in found["counts"].items():
        lines.append(f"{key:32}{value:>10}{found['targets'].get(key, ''):>10}")
    for key, value in found["names"].items():
        rows = [f"{name}: {', '.join(places)}" for name, places in value.items()] if isinstance(value, dict) else value
        rows = [" + ".join(row) if isinstance(row, list) else row for row in rows]
        lines += ["", f"{key}:", *(f"  {row}" for row in rows or ["none"])]
    return "\n".join(lines)


def main() -> None:
    """Print the counts of a checkout."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="also count the files that a short default run enters")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="a checkout of clbench")
    arguments = parser.parse_args()
    found = measure(arguments.root.resolve(), arguments.run)
    print(json.dumps(found, indent=1) if arguments.json else table(found))


if __name__ == "__main__":
    main()
