"""execute: many runs over worker processes that import torch once. A worker that dies loses only its run."""

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
    """A run that did not end, and why; ``diverged``: its weights became non-finite, as they would again."""

    cell: Cell
    reason: str
    diverged: bool = False


def execute(jobs: Sequence[Job], workers: int, done: Callable[[Cell], None]) -> list[Failure]:
    """Run all ``jobs``; ``done`` is called after each that ended well.

    If the first to end all fail for one reason, a data set that is missing, say, the others are not begun.

    Interrupted (Ctrl-C), it ends its workers and raises on: finished runs stay, the others have written nothing half.
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
    """Give the waiting jobs to at most ``workers`` workers, idle ones first."""
    while waiting and len(busy) < workers:
        worker = idle.pop() if idle else Worker()
        try:
            worker.connection.send(waiting[-1])
        except OSError:  # it died while it had nothing to do
            worker.end()
        else:
            busy[worker.connection] = (worker, waiting.pop())


def hopeless(failures: Sequence[Failure]) -> bool:
    """Whether a few runs failed for the same reason, as the others would."""
    return len(failures) >= FEW and len({f.reason for f in failures}) == 1 and not failures[0].diverged


class Worker:
    """A process that runs what it is sent, one after the other."""

    def __init__(self) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the end of the pipe

    def receive(self, cell: Cell) -> Failure | None:
        """Wait for the end of the run ``cell`` and return why it failed, None if it did not."""
        try:
            reason = self.connection.recv()
        except EOFError:
            self.process.join()
            return Failure(cell, f"its worker process ended ({self.process.exitcode})")
        return None if reason is None else Failure(cell, *reason)

    def end(self) -> None:
        """At once; files are written atomically."""
        self.process.kill()
        self.process.join()


def work(connection: Connection) -> None:
    """The loop of a worker: receives jobs, answers None, or why a run failed and whether it diverged.

    Ctrl-C is the parent's business.
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
    """A killed parent takes its workers along: none keeps writing where the same command, started again, writes."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
