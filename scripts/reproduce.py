"""Run a study, a published protocol with its numbers, and compare: ``python scripts/reproduce.py NAME``.

Writes results/NAME.json, .md and .png and, unless --results names another folder, docs/reproductions.md. Finished runs are
stored under --runs by configuration hash, so the same command resumes after Ctrl-C or a lost machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from reproduction.collect import collect
from reproduction.execute import execute
from reproduction.page import outcome
from reproduction.parse import find_names, load, names
from reproduction.plan import Cell, decisive_runs, needed_runs, number_of_cells
from reproduction.progress import Progress, duration
from reproduction.protocol import Protocol, Row, full, quick, usual
from reproduction.store import Store
from reproduction.verify import verify
from reproduction.write import rewrite, write, write_index
from rich.console import Console
from rich.table import Column, Table

from clbench.config.messages import silence_lightning, user_message
from clbench.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs/reproductions.md"


def main() -> None:
    """Run the command line."""
    args = _arguments()
    silence_lightning()
    for stop in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and a machine that shuts down
        signal.signal(stop, signal.default_int_handler)
    try:
        if args.list:
            show_list(args.results)
        elif args.index:
            rewrite(RESULTS)
            write_index(RESULTS, PAGE)
        elif args.name is None:
            raise ConfigError(f"NAME: expected a study, got none. Try {', '.join(names())}, or --list for their cost.")
        elif args.verify:
            sys.exit(verify(_committed(args.name, args.results), args.seed, args.row))
        else:
            for name in find_names(args.name):
                reproduce(name, args)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Rerun the same command to resume.")
    except Exception as error:
        message = user_message(error)
        if not message:
            raise
        sys.exit(f"error: {message}")


def reproduce(name: str, args: argparse.Namespace) -> None:
    """Run the unfinished runs of a study, then write the results."""
    protocol = load(name)
    protocol = full(protocol) if args.full else usual(protocol)
    if args.quick:
        protocol = quick(protocol)
    store = Store(args.runs / protocol.name.replace("-full", ""))  # both forms use the same store, so they share runs
    folder = store.folder / "results" if args.quick else args.results
    for option, needed in (("--runs", store.folder), ("--results", folder)):
        check_writable(option, needed)
    with store.locked():
        results = finish(protocol, store, args.workers)
        found = collect(protocol, results, store.hash)
        write(found, folder)
        store.clear_shared()
    if folder == RESULTS:
        write_index(RESULTS, PAGE)
    print(f"{outcome(found)}; {folder / protocol.name}.md")


def check_writable(option: str, folder: Path) -> None:
    """Create the folder before any run starts.

    Raises:
        ConfigError: The folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option}={folder}: expected a writable folder, got: {error.strerror}. Try another folder."
        ) from error


def finish(protocol: Protocol, store: Store, workers: int) -> Mapping[Cell, Any]:
    """Run the missing runs of a protocol and return the metrics of all runs.

    Raises:
        ConfigError: Runs failed.
    """
    results: dict[Cell, Any] = {}
    while True:
        cells: dict[Cell, Row] = {}
        for row in protocol.rows:
            for cell in needed_runs(row, results):
                cells.setdefault(cell, row)  # two rows may need the same run
        new = [cell for cell in cells if cell not in results]
        results |= {cell: metrics for cell in new if (metrics := store.metrics(cell)) is not None}
        missing = [cell for cell in new if cell not in results]
        if not new:
            return results
        if not missing:
            continue
        with Progress(len(cells), done=len(cells) - len(missing)) as progress:

            def done(cell: Cell, progress: Progress = progress, cells: Mapping[Cell, Row] = cells) -> None:
                store.finished(cell)
                row = cells[cell]
                progress.step(" ".join([row.name, *cell.overrides[len(row.overrides) :], f"seed={cell.seed}"]))

            jobs = {store.path(cell): cell for cell in missing}  # two rows may write the same run differently
            for cell in jobs.values():
                store.clear(cell)
            failures = execute([(cell, path) for path, cell in jobs.items()], workers, done)
        needed = {cell for row in protocol.rows for cell in decisive_runs(row, results)}
        for failure in [f for f in failures if f.diverged and f.cell not in needed]:
            store.diverged(failure.cell, failure.reason)
            failures.remove(failure)
        if failures:
            reasons = "; ".join(f"{' '.join(f.cell.arguments)}: {f.reason}" for f in failures[:3])
            raise ConfigError(f"{len(failures)} of {len(missing)} runs failed (the others are stored): {reasons}")


def show_list(results: Path) -> None:
    """Print all studies with their cost and outcome."""
    table = Table(Column("name", no_wrap=True), "study", "runs", "time on one core", "outcome")
    for name in names():
        loaded = load(name)
        for protocol in (usual(loaded), *([full(loaded)] if loaded.full else [])):
            runs = number_of_cells(protocol)
            file = results / f"{protocol.name}.json"
            result = outcome(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else "not run yet"
            shown = protocol.name.replace("-full", " --full")
            table.add_row(shown, protocol.title, str(runs), duration(runs * protocol.seconds), result)
    Console().print(table)


def _committed(name: str, results: Path) -> dict[str, Any]:
    file = results / f"{name}.json"
    if not file.exists():
        load(name)  # an unknown name raises an error that lists the studies
        raise ConfigError(f"--verify {name}: {file.name} is not in {results}. Run the study first.")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="study, see --list; or the common beginning of several, such as nccl")
    parser.add_argument("--list", action="store_true", help="list all studies with their cost and outcome")
    parser.add_argument(
        "--index", action="store_true", help="rewrite the pages in results/ and docs/reproductions.md without training"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="run the published form of a study whose default form is smaller (see --list)",
    )
    parser.add_argument("--quick", action="store_true", help="run a cut-down form for tests; results stay under --runs")
    parser.add_argument("--verify", action="store_true", help="rerun one row of the committed results and compare")
    parser.add_argument("--seed", type=int, default=0, help="seed that --verify runs (default 0)")
    parser.add_argument("--row", help="row that --verify runs (default: the first)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="number of processes (default: one per core)"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs/reproduce", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: expected at least 1. Try --workers 1.")
    return args


if __name__ == "__main__":
    main()
