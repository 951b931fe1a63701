"""Errors of the operating system: name the file that caused them, and translate them into one line with a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = "Free some disk space and rerun the same command, which resumes after the last complete task."
PERMISSIONS = "Change the permissions of the file and of its folder, or try another folder."
WRONG_KIND = "Move away what is at this path, or try another path."
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FULL),
    errno.EFBIG: "Raise the limit of the size of a file (ulimit -f) and rerun the same command.",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), PERMISSIONS),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY), WRONG_KIND),
    errno.ENOENT: "Restore it, or try another path.",
    errno.ENAMETOOLONG: "Try a shorter path.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the number of open files (ulimit -n)."),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EBUSY), "Check the disk, and rerun the same command to resume."),
}
"""Number of an error of the file system -> remedy."""


def os_message(error: OSError) -> str | None:
    """Return one line for an error of the file system, None for other errors, such as those of the network.

    >>> os_message(PermissionError(errno.EACCES, "Permission denied", "runs/a"))  # doctest: +ELLIPSIS
    'runs/a: Permission denied. Change the permissions of the file and of its folder, ...'
    """
    remedy = REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror}. {remedy}"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Set the file of an OSError to ``path``, because an error while writing names no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
