"""Write the files of a study: study.json, study.md, table.{md,tex,csv,json} and figure.{png,svg,pdf}."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from clbench.errors import ConfigError
from clbench.report.output import write_text
from clbench.runs.folder import atomically
from clbench.study.figure import figure
from clbench.study.page import markdown
from clbench.study.table import records, table_with_legend, to_csv, to_tex


def write(found: dict[str, Any], folder: Path) -> None:
    """Write all files of a study, whose study.json contains ``found``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "study.json", json.dumps(found, indent=1) + "\n")
    write_text(folder / "study.md", markdown(found, "figure.png"))
    write_text(folder / "table.md", "\n".join([*table_with_legend(found), ""]))
    write_text(folder / "table.tex", to_tex(found))
    write_text(folder / "table.csv", to_csv(found))
    write_text(folder / "table.json", json.dumps(records(found), indent=1) + "\n")
    for ending in ("png", "svg", "pdf"):
        save_figure(found, folder / f"figure.{ending}")


def check_writable(folder: Path) -> None:
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
            f"{folder}: expected a writable folder, got: {error.strerror}. Try another --output."
        ) from error


def save_figure(found: dict[str, Any], path: Path) -> None:
    """Write the figure of a study in the format of the ending of ``path``."""
    atomically(path, partial(figure(found).savefig, format=path.suffix[1:], dpi=130))
