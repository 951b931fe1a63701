"""Write the files of a report. Each is written whole, and figures that an earlier report left in the folder are removed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from clbench.errors import ConfigError
from clbench.runs.folder import atomically, remove_parts


def make_folder(output: Path) -> None:
    """Create ``output`` and ``output``/figures, and remove temporary files of a report that was killed.

    Raises:
        ConfigError: The folders cannot be created.
    """
    try:
        (output / "figures").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--output {output}: expected a folder, got a file or a path below a file.") from None
    except OSError as error:
        raise ConfigError(
            f"--output {output}: the folder cannot be created: {error.strerror}. Try another one."
        ) from None
    for folder in (output, output / "figures"):
        remove_parts(folder)


def write_text(path: Path, text: str) -> None:
    r"""Write ``text`` in UTF-8. A character that UTF-8 cannot encode, of a file name with other bytes, becomes ``\udc80``."""
    atomically(path, partial(Path.write_text, data=text, encoding="utf-8", errors="backslashreplace"))


def remove_old_figures(folder: Path, names: Iterable[str], drawn: Iterable[str]) -> None:
    """Remove the figures of an earlier report, whose rows may no longer exist.

    Args:
        folder: Folder of the figures. Files with other names than a report writes are kept.
        names: Names of all figures, which may follow the number of a benchmark: ``ranking`` or ``1_ranking``.
        drawn: Names, with numbers, of the figures of this report.
    """
    of_reports = re.compile(rf"(\d+_)?({'|'.join(names)})\.(png|svg|pdf)")
    kept = set(drawn)
    for file in folder.iterdir():
        if of_reports.fullmatch(file.name) and file.stem not in kept and file.is_file():
            file.unlink()
