"""End worker processes whose parent process was killed."""

from __future__ import annotations

import multiprocessing
import os
import time
from functools import cache
from threading import Thread

INTERVAL = 1.0
"""Seconds between two checks."""


@cache  # a worker of a sweep trains many runs, but needs one thread
def exit_with_parent() -> None:
    """Make this process end soon after its parent, if it is a worker of a sweep or of a run with several processes.

    A killed parent cannot stop its workers, which would keep their memory. The operating system can only signal the end of
    the thread that started a worker, and that thread may end earlier. So a thread looks at the number of the parent process.
    """
    is_of_run = int(os.environ.get("LOCAL_RANK", 0)) > 0  # set by Lightning's launcher
    if is_of_run or multiprocessing.parent_process() is not None:
        Thread(target=_wait_for_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_end(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    os._exit(1)  # files are written completely or not at all, as after a kill
