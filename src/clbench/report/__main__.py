"""Write report.html, summary.csv, summary.tex and figures of runs: ``python -m clbench.report FOLDER...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from clbench.config.display import console
from clbench.config.messages import errors_in_one_line
from clbench.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

    from clbench.report.benchmark import Benchmark

MAX_PRINTED = 5
"""Largest number of excluded runs that are printed. The page lists more."""

MAX_DRAWN = 6
"""Largest number of benchmarks with figures, because those of one benchmark take a second or two."""


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """Write the report and return its folder, or None after ``--watch``.

    Raises:
        ConfigError: A folder contains no runs, no run is complete, or the output folder cannot be created.
    """
    options = make_parser().parse_args(arguments)
    if options.watch:
        from clbench.report.watch import watch

        if len(options.folders) > 1:
            raise ConfigError(f"--watch: expected the folder of one sweep, got {len(options.folders)}.")
        watch(Path(options.folders[0]))
        return None
    # these imports take a second, which --help and wrong arguments do not need
    from clbench.metrics.registry import metrics_of
    from clbench.report import tables
    from clbench.report.benchmark import split_benchmarks
    from clbench.report.output import make_folder
    from clbench.report.summary import select_lam, selected_rows, summarize_seeds
    from clbench.runs.names import printable
    from clbench.runs.read import read_runs

    folders, output = [Path(folder) for folder in options.folders], Path(options.output)
    runs = read_runs(folders)
    complete = runs[runs.status == "complete"]
    if complete.empty:
        first = runs.iloc[0]
        raise ConfigError(
            f"expected a complete run, got {len(runs)} incomplete ones. {printable(first.folder)}: {first.problem}"
        )
    setups = select_lam(summarize_seeds(complete), options.select)
    rows = selected_rows(setups)
    benchmarks = split_benchmarks(complete, setups, options.select)
    metrics = metrics_of(complete.extra_metrics)
    make_folder(output)
    write_page(options.title, _describe_sources(folders), runs, benchmarks, output, options.width)
    tables.write_csv(setups, metrics, output / "summary.csv")
    tables.write_tex(rows, metrics, options.select, output / "summary.tex")
    _print_summary(tables.terminal_tables(rows, metrics), runs, output)
    return output


def write_page(
    title: str, note: str, runs: DataFrame, benchmarks: Sequence[Benchmark], output: Path, width: float | None = None
) -> None:
    """Write ``output``/report.html and the figures in ``output``/figures.

    Args:
        title: Title of the page.
        note: Date and source folders of the report.
        runs: All runs, from ``read``.
        benchmarks: Results of the complete runs, from ``split_benchmarks``.
        output: Existing folder with a folder ``figures``.
        width: Width of the figures in the folder in inches, by default as on the page.
    """
    from clbench.report.benchmark import section_context
    from clbench.report.figures import FIGURES, draw_figures
    from clbench.report.output import remove_old_figures, write_text
    from clbench.report.page import page_context, render_page
    from clbench.report.style import assign_colours

    colours = assign_colours(strategy for benchmark in benchmarks for strategy in benchmark.setups.strategy)
    sections, drawn = [], []
    for number, benchmark in enumerate(benchmarks):
        prefix = "" if len(benchmarks) == 1 else f"{number}_"
        figures = draw_figures(benchmark, colours, output / "figures", prefix, width) if number < MAX_DRAWN else {}
        sections.append(section_context(number, benchmark, figures, colours))
        drawn += [f"{prefix}{name}" for name in figures]
    write_text(output / "report.html", render_page(page_context(title, note, runs, sections)))
    remove_old_figures(output / "figures", FIGURES, drawn)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        "clbench report",
        description="Write report.html, summary.csv, summary.tex and figures of runs, and print a table.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of runs or sweeps, or any parent folder")
    parser.add_argument("--output", default="report", metavar="FOLDER", help="folder of the report (default: report)")
    parser.add_argument(
        "--select",
        choices=("validation", "test"),
        default="validation",
        help="data on which lam is selected; test is labelled as an oracle (default: validation)",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show which runs of a sweep are done, started or failed, and the time left, until all have ended",
    )
    parser.add_argument(
        "--width",
        type=_width,
        metavar="INCHES",
        help="width of the figures in the folder, such as 3.3 for a column of a paper (default: as on the page, 6.4)",
    )
    parser.add_argument("--title", default="clbench report", help="title of the page (default: clbench report)")
    return parser


def _width(text: str) -> float:
    width = float(text)
    if not 2 <= width <= 20:
        raise argparse.ArgumentTypeError(
            f"expected 2 to 20 inches, got {text}. The column of a paper is about 3.3 wide."
        )
    return width


def _describe_sources(folders: Sequence[Path]) -> str:
    more = " and more" if len(folders) > 3 else ""
    return f"{', '.join(map(str, folders[:3]))}{more}, {datetime.now():%d %B %Y %H:%M}"


def _print_summary(tables: Sequence[Table], runs: DataFrame, output: Path) -> None:
    """Print the tables, the excluded runs and the path of the page."""
    from rich.text import Text

    from clbench.runs.names import printable

    terminal = console()
    for table in tables:
        terminal.print(table)
    lines = []
    if len(tables) > MAX_DRAWN:
        lines.append(f"figures are drawn only for the {MAX_DRAWN} of {len(tables)} benchmarks with the most runs")
    excluded = runs[runs.status != "complete"]
    lines += [f"skipped: {row.folder} ({row.problem})" for row in excluded.head(MAX_PRINTED).itertuples()]
    if len(excluded) > MAX_PRINTED:
        lines.append(f"and {len(excluded) - MAX_PRINTED} more skipped runs, which the report lists")
    for line in (*lines, f"report in {output / 'report.html'}"):
        terminal.print(Text(printable(line)), soft_wrap=True)


def cli() -> None:
    """Run the command ``clbench report``."""
    with errors_in_one_line():
        main()


if __name__ == "__main__":
    cli()
