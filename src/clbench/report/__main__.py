"""``python -m clbench.report FOLDER...``: runs -> report.html, summary.csv, summary.tex, figures, a table in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from clbench.config.display import console
from clbench.config.messages import errors_in_one_line
from clbench.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

SAID = 5  # runs that do not count, in the terminal; the page lists more
DRAWN = 6  # settings with figures, those with the most runs; drawing takes a second or two for each


def main(arguments: Sequence[str] | None = None) -> Path:
    """Read, compute, draw, write; returns the folder of the report.

    Raises:
        ConfigError: a folder without runs, or no run that is complete.
    """
    asked = parser().parse_args(arguments)
    # these take a second to import: --help and wrong arguments answer at once
    from clbench.report import tables
    from clbench.report.draw import draw
    from clbench.report.page import page
    from clbench.report.section import Setting, section
    from clbench.report.statistics import choose, over_seeds, paired, shown
    from clbench.report.style import colours_of
    from clbench.runs.read import read

    folders = [Path(folder) for folder in asked.folders]
    runs = read(folders)
    complete = runs[runs.status == "complete"]
    if complete.empty:
        raise ConfigError(_nothing_complete(runs))
    cells = choose(over_seeds(complete), asked.select)
    rows = shown(cells)
    pairs = paired(complete, rows)
    colours = colours_of(cells.strategy)
    output = Path(asked.output)
    try:
        (output / "figures").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--output {output}: it is a file, or lies below one; give a folder") from None

    order = list(complete.setting.value_counts().index)
    sections = []
    for number, name in enumerate(order):
        of_all, of_rows, of_runs, of_pairs = (f[f.setting == name] for f in (cells, rows, complete, pairs))
        setting = Setting(name, of_all, of_rows, of_runs, of_pairs, asked.select)
        prefix = "" if len(order) == 1 else f"{number}_"
        figures = draw(setting, colours, output / "figures", prefix) if number < DRAWN else {}
        sections.append(section(number, setting, figures, colours))
    note = f"{', '.join(map(str, folders[:3]))}{' and more' * (len(folders) > 3)}, {datetime.now():%d %B %Y %H:%M}"
    (output / "report.html").write_text(page(asked.title, runs, sections, order, note))
    tables.write_csv(cells, output / "summary.csv")
    tables.write_tex(rows, asked.select, output / "summary.tex")
    _say(tables.for_terminal(rows), runs, order, output)
    return output


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser("clbench-report", description=__doc__.split(": ", 1)[1])
    made.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, sweeps, or any folder above them")
    made.add_argument(
        "--output", default="report", metavar="FOLDER", help="where the report is written (default: report)"
    )
    made.add_argument(
        "--select",
        choices=("validation", "test"),
        default="validation",
        help="the data lam is chosen on; test is an oracle, and labelled so (default: validation)",
    )
    made.add_argument("--title", default="clbench report", help="of the page")
    return made


def _say(tables: Sequence[Table], runs: DataFrame, settings: Sequence[str], output: Path) -> None:
    """The tables, what is wrong, and where the rest is."""
    terminal = console()
    for table in tables:
        terminal.print(table)
    if len(settings) > DRAWN:
        terminal.print(f"figures are drawn for the {DRAWN} settings with the most runs, of {len(settings)}")
    bad = runs[runs.status != "complete"]
    for row in bad.head(SAID).itertuples():
        terminal.print(f"{row.status}: {row.folder}: {row.problem}", soft_wrap=True, markup=False)
    if len(bad) > SAID:
        terminal.print(f"and {len(bad) - SAID} more that do not count: see the report")
    terminal.print(f"report in {output / 'report.html'}", soft_wrap=True, markup=False)


def _nothing_complete(runs: DataFrame) -> str:
    first = runs.iloc[0]
    return f"none of {len(runs)} runs is complete; {first.folder}: {first.problem}"


def cli() -> None:
    """The command ``clbench-report``."""
    with errors_in_one_line():
        main()


if __name__ == "__main__":
    cli()
