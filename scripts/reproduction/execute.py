"""Execute many runs in worker processes that import torch once. A worker that dies loses only its run."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from clbench.config.messages import user_message
from clbench.errors import Unstable
from reproduction.plan import Cell

Job = tuple[Cell, Path]
CONTEXT = get_context("spawn")
FEW = 3


class Failure(NamedTuple):
    """A failed run with its reason. ``diverged`` means that its weights became non-finite, which a rerun would repeat."""

    cell: Cell
    reason: str
    diverged: bool = False


def execute(jobs: Sequence[Job], workers: int, done: Callable[[Cell], None]) -> list[Failure]:
    """Run all ``jobs`` and return the failures. ``done`` is called after each successful run.

    If the first runs all fail for the same reason, such as a missing data set, the others are not started. Ctrl-C ends the
    workers and is raised again. Finished runs remain, and no file is left half written.
    """
    waiting = list(reversed(jobs))
    failures: list[Failure] = []
    busy: dict[Connection, tuple[Worker, Job]] = {}
    idle: list[Worker] = []
    ended_well = False

    try:
        feed(waiting, busy, idle, workers)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker, (cell, _) = busy.pop(connection)
                failure = worker.receive(cell)
                if worker.process.exitcode is None:
                    idle.append(worker)
                if failure is None:
                    done(cell)
                    ended_well = True
                else:
                    failures.append(failure)
                if not ended_well and hopeless(failures):
                    waiting.clear()
            feed(waiting, busy, idle, workers)
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.end()
    return failures


def feed(waiting: list[Job], busy: dict[Connection, tuple[Worker, Job]], idle: list[Worker], workers: int) -> None:
    """Send the waiting jobs to at most ``workers`` workers, idle ones first."""
    while waiting and len(busy) < workers:
        worker = idle.pop() if idle else Worker()
        try:
            worker.connection.send(waiting[-1])
        except OSError:  # the worker died while it was idle
            worker.end()
        else:
            busy[worker.connection] = (worker, waiting.pop())


def hopeless(failures: Sequence[Failure]) -> bool:
    """Return whether the first runs failed for the same reason, so that the others would fail as well."""
    return len(failures) >= FEW and len({f.reason for f in failures}) == 1 and not failures[0].diverged


class Worker:
    """Process that executes the runs it receives, one at a time."""

    def __init__(self) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process dies

    def receive(self, cell: Cell) -> Failure | None:
        """Wait for the end of the run ``cell`` and return its failure, None if it succeeded."""
        try:
            reason = self.connection.recv()
        except EOFError:
            self.process.join()
            return Failure(cell, f"its worker process ended ({self.process.exitcode})")
        return None if reason is None else Failure(cell, *reason)

    def end(self) -> None:
        """Kill the process. Files are written atomically, so none is left half written."""
        self.process.kill()
        self.process.join()


def work(connection: Connection) -> None:
    """Run the loop of a worker: receive a job, send None or the reason of the failure and whether the run diverged.

    The parent process handles Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from reproduction.here import train_here

    while True:
        try:
            cell, folder = connection.recv()
        except EOFError:
            return
        try:
            train_here(cell.arguments, folder)
        except Exception as error:
            connection.send((user_message(error) or traceback.format_exc(), isinstance(error, Unstable)))
        else:
            connection.send(None)


def _end_with_parent() -> None:
    """End the worker when the parent dies, so that it cannot write to the folder of a restarted command."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
