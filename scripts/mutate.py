"""Change one line of the source at a time, and check that a test fails.

    python scripts/mutate.py [WORD ...]

The mutations are in mutations.toml. WORD selects those whose file or lines contain it. They are made in a copy of the source, and
the tests of each run until the first one fails. The exit code is 1 if no test failed for a mutation that is not listed as
equivalent, if tests did not end, or if a test fails without a mutation. The whole table takes about half an hour, so this is
not part of CI.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("mutations.toml")
TIMEOUT = 600
"""Seconds after which tests are ended, because a mutation may make a loop endless."""

IMPORTED_ONCE = ("hydra", "lightning.pytorch", "matplotlib.pyplot", "pandas", "scipy.stats", "sklearn.datasets")
"""Packages that take long to import. Every mutation runs in a fork of a process that has imported them."""


class Mutation(NamedTuple):
    """A changed line.

    Attributes:
        file: Path in src/clbench.
        old: Text that occurs exactly once in the file.
        new: Text that replaces it.
        tests: Arguments of pytest, paths in tests/. Tests marked slow run only if their full name with its example is given.
        equivalent: Reason why no test can fail, "" if one must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.old}  ->  {self.new}"


def mutations() -> Iterator[Mutation]:
    """Yield the mutations of mutations.toml."""
    for group in tomllib.loads(TABLE.read_text(encoding="utf-8"))["group"]:
        for line in group["lines"]:
            yield Mutation(group["file"], line[0], line[1], tuple(group["tests"]), *line[2:])


def mutate(text: str, mutation: Mutation) -> str:
    """Return the ``text`` of a file with the mutation.

    Raises:
        ValueError: The old text does not occur exactly once.
    """
    if (number := text.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.file}: expected {mutation.old!r} exactly once, got {number}. Correct {TABLE.name}")
    return text.replace(mutation.old, mutation.new)


def result(tests: Sequence[str], source: Path) -> str:
    """Return whether ``tests`` ``pass``, ``fail`` or reach the ``timeout`` with the package in ``source``.

    Raises:
        ChildProcessError: pytest could not run the tests, for example because the mutation is no Python.
    """
    child = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(tests, source))
    child.start()
    child.join(TIMEOUT)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        return "timeout"
    if child.exitcode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise ChildProcessError((source.parent / "pytest.log").read_text(encoding="utf-8"))
    return "fail" if child.exitcode else "pass"


def _run_pytest(tests: Sequence[str], source: Path) -> None:
    os.setsid()  # so that processes which the tests start can be ended too
    os.chdir(ROOT)
    sys.path[:0] = [str(source), str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(source.parent / "hypothesis")
    with (source.parent / "pytest.log").open("w", encoding="utf-8") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    fast = [] if any("[" in test for test in tests) else ["-m", "not slow"]
    paths = [str(ROOT / "tests" / test) for test in tests]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    imported_early = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main([*options, *imported_early, *fast, *paths]))


def outcome(mutation: Mutation, source: Path) -> str:
    """Return ``killed`` if a test fails, ``equivalent`` or ``survived`` if all pass, or ``timeout``."""
    file = source / "clbench" / mutation.file
    text = file.read_text(encoding="utf-8")
    file.write_text(mutate(text, mutation), encoding="utf-8")
    found = result(mutation.tests, source)
    file.write_text(text, encoding="utf-8")
    return {"fail": "killed", "pass": "equivalent" if mutation.equivalent else "survived"}.get(found, found)


def check_tests(chosen: Sequence[Mutation], source: Path) -> None:
    """Exit unless all tests pass without a mutation."""
    for tests in dict.fromkeys(mutation.tests for mutation in chosen):
        start = perf_counter()
        if result(tests, source) != "pass":
            log = (source.parent / "pytest.log").read_text(encoding="utf-8")
            sys.exit(f"{log}\nThese tests fail without a mutation.")
        print(f"pass       {perf_counter() - start:5.1f} s  {' '.join(tests)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    words = parser.parse_args().words
    chosen = [mutation for mutation in mutations() if not words or any(word in str(mutation) for word in words)]
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(ROOT / "src", Path(folder) / "src"))
        shutil.copytree(ROOT / "conf", Path(folder) / "conf")
        sys.dont_write_bytecode = False  # saves the time to compile the source again for each mutation
        check_tests(chosen, source)
        sys.dont_write_bytecode = True  # a file that changes twice in a second would be read from its old bytecode
        for mutation in chosen:
            start = perf_counter()
            counts[found := outcome(mutation, source)] += 1
            print(f"{found:10} {perf_counter() - start:5.1f} s  {mutation}", flush=True)
    print(", ".join(f"{number} {found}" for found, number in counts.items()))
    sys.exit(1 if counts["survived"] or counts["timeout"] else 0)


if __name__ == "__main__":
    main()
