"""Run a study, the table of a paper in one yaml file: ``python -m clbench.study NAME | FILE.yaml``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clbench.config.messages import check_arguments, errors_in_one_line
from clbench.errors import ConfigError, SweepFailed

if TYPE_CHECKING:
    from clbench.study.definition import Study

OUTPUT = Path("outputs/studies")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all runs are done and every claim holds.

    Raises:
        ConfigError: The study is not valid, or runs failed.
    """
    parser = make_parser()
    args = parser.parse_intermixed_args(arguments)
    check_arguments(args.overrides)
    if wrong := [override for override in args.overrides if "=" not in override]:
        raise ConfigError(f"{wrong[0]}: expected option=value after the name of the study, such as launch=joblib.")
    # these imports take a second, which --help and wrong arguments do not need
    from clbench.config.messages import silence_lightning
    from clbench.study import forms
    from clbench.study.parse import load, names

    silence_lightning()
    if args.list:
        show_list()
        return 0
    if args.study is None:
        raise ConfigError(f"expected a study, got none. Try {', '.join(names())}, a yaml file, or --list.")
    if args.study == "benchmark":
        return run_benchmark(args)
    study = load(args.study)
    if args.verify is not None:
        from clbench.study.runs import divide
        from clbench.study.verify import verify

        _, typed = divide(args.overrides)
        found = committed(study, args.output, args.study)
        return verify(found, args.seed, args.verify or None, typed, args.config_dir and config_dir(args.config_dir))
    if args.seed is not None:
        raise ConfigError("--seed: expected --verify ROW with it. The seeds of a study are in its file, under seeds.")
    study = forms.full(study) if args.full else forms.usual(study)
    if args.quick:
        study = forms.quick(study)
    return run_study(study, args)


def run_study(study: Study, args: argparse.Namespace) -> int:
    """Run the missing runs of a study, write its files and return the exit status of the command."""
    from clbench.study.collect import collect
    from clbench.study.runs import StudyRuns
    from clbench.study.write import check_writable

    folder = args.output / study.name
    runs_folder = args.output / study.name.removesuffix("-quick").removesuffix("-full") / "runs"  # forms share runs
    with StudyRuns.opened(runs_folder.absolute(), [*search_paths(args), *args.overrides]) as runs:
        runs.check(study)
        if args.dry_run:
            print(runs.describe(study))
            return 0
        check_writable(folder)
        found = collect(study, runs.finish(study), runs.hash, command_of(args))
    show(found, folder)
    if args.quick:
        print("This was the quick form: its numbers mean nothing, so its claims do not count.")
    return 0 if args.quick or all(claim["holds"] for claim in found["claims"]) else 1


def run_benchmark(args: argparse.Namespace) -> int:
    """Run the benchmark of a strategy of the user and compare it with the shipped ones.

    Raises:
        ConfigError: An argument is not valid, or there are no results of the shipped strategies.
    """
    from clbench.study.collect import collect
    from clbench.study.own_strategy import Benchmark, load_suite, study_of, wanted
    from clbench.study.runs import StudyRuns
    from clbench.study.write import check_writable

    if args.quick or args.full or args.verify is not None or args.seed is not None:
        raise ConfigError(
            "benchmark: expected neither --quick, --full, --verify nor --seed. Use --dry-run for a check."
        )
    asked = wanted(args.overrides)
    suite = load_suite(asked.suite)
    shipped = results_of(suite.name, args.output, shipped=not asked.suite.endswith(".yaml"))
    if shipped is None:
        raise ConfigError(
            f"suite={asked.suite}: there are no results of {suite.name}. Run clbench study {study_of(asked.suite)} first."
        )
    folder = args.output / f"{suite.name}-{asked.strategy}"
    with StudyRuns.opened((folder / "runs").absolute(), [*search_paths(args), *asked.elsewhere]) as runs:
        benchmark = Benchmark(suite, shipped, asked, runs)
        runs.check(benchmark.study)
        if args.dry_run:
            print(runs.describe(benchmark.study))
            return 0
        check_writable(folder)
        try:
            results = runs.finish(benchmark.study)
        except SweepFailed as error:
            raise SweepFailed(
                f"{error} A strategy that does not work in every scenario is compared in the others: "
                f"parts={','.join(list(suite.parts)[:-1])}."
            ) from error
        found = benchmark.compared(collect(benchmark.study, results, runs.hash, command_of(args)))
    show(found, folder)
    return 0


def search_paths(args: argparse.Namespace) -> list[str]:
    """Return the override for the folder of ``--config-dir``, if it is given."""
    from clbench.config.compose import search_path

    return [search_path([config_dir(args.config_dir)])] if args.config_dir else []


def show(found: dict[str, Any], folder: Path) -> None:
    """Write the files of a study and print its table, claims, cost and outcome."""
    from clbench.config.display import console
    from clbench.study.overview import overview
    from clbench.study.page import cost, outcome
    from clbench.study.table import terminal_table
    from clbench.study.write import write

    write(found, folder)
    terminal = console()
    terminal.print(terminal_table(found))
    for paragraph in overview(found) if "parts" in found else ():
        terminal.print(paragraph.replace("**", ""), soft_wrap=True, markup=False, highlight=False)
    for claim in found["claims"]:
        holds = "holds" if claim["holds"] else "does not hold"
        terminal.print(f"{holds}: {claim['text']} ({claim['measured']})", soft_wrap=True, markup=False)
    terminal.print(cost(found), soft_wrap=True, highlight=False)
    terminal.print(f"{outcome(found)}; files in {folder}", soft_wrap=True, markup=False)


def show_list() -> None:
    """Print all studies with their cost and outcome."""
    from rich.table import Column, Table

    from clbench.config.display import console
    from clbench.runs.sweep_log import duration
    from clbench.study.forms import full, usual
    from clbench.study.page import outcome
    from clbench.study.parse import load, names
    from clbench.study.plan import number_of_cells

    table = Table(Column("name", no_wrap=True), "study", "runs", "time on one core", "outcome")
    for name in names():
        loaded = load(name)
        for study in (usual(loaded), *([full(loaded)] if loaded.full else [])):
            runs = number_of_cells(study)
            found = results_of(study.name, OUTPUT)
            cost = "unknown" if study.seconds is None else duration(runs * study.seconds)
            result = "not run yet" if found is None else outcome(found)
            table.add_row(study.name.replace("-full", " --full"), study.title, str(runs), cost, result)
    console().print(table)


def committed(study: Study, output: Path, given: str) -> dict[str, Any]:
    """Return the results with which ``--verify`` compares, those of ``output`` for a file with the name of a study.

    Raises:
        ConfigError: There are none.
    """
    found = results_of(study.name, output, shipped=given == study.name)
    if found is None:
        raise ConfigError(f"--verify: there are no results of {study.name}. Run the study first.")
    return found


def results_of(name: str, output: Path, shipped: bool = True) -> dict[str, Any] | None:
    """Return the committed results of a study of this project, else those in ``output``, None if there are none.

    Raises:
        ConfigError: The file is damaged.
    """
    from clbench.study.origin import results_folder
    from clbench.study.parse import names

    folder = results_folder()
    shipped = shipped and name.removesuffix("-full") in names()
    files = [folder / f"{name}.json"] if folder is not None and shipped else []
    for file in (*files, output / name / "study.json"):
        if file.exists():
            try:
                found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                found["rows"], found["claims"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file}: the file is damaged. Run the study again, which writes it.") from error
            return found
    return None


def config_dir(folder: Path) -> Path:
    """Return the absolute path of a folder with configuration groups.

    Raises:
        ConfigError: There is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder}: expected a folder with configuration groups, but there is none.")
    return folder.absolute()


def command_of(args: argparse.Namespace) -> str:
    """Return the command that reproduces the results, without options that do not affect them."""
    flags = [flag for flag, given in (("--full", args.full), ("--quick", args.quick)) if given]
    folder = ["--config-dir", str(args.config_dir)] if args.config_dir else []
    own = args.overrides if args.study == "benchmark" else []
    return shlex.join(["clbench", "study", args.study, *own, *flags, *folder])


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        "clbench study",
        description="Run a study: rows of runs over seeds, options tuned on validation data, published numbers and claims, "
        "declared in one yaml file. Finished runs are kept, so the same command resumes after Ctrl-C or a lost machine. "
        "The exit status is 0 only if every claim holds.",
    )
    parser.add_argument("study", nargs="?", metavar="NAME | FILE.yaml", help="a study of --list, or a file of your own")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="option=value",
        help="where the runs are executed, such as launch=serial, launch=slurm, hydra.launcher.n_jobs=2 or data_dir=data "
        "(default: launch=joblib, one process per core)",
    )
    parser.add_argument("--list", action="store_true", help="list the studies of this project with cost and outcome")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all rows and print the number and cost of the runs"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="run a cut-down form, which shows that every step works")
    form.add_argument("--full", action="store_true", help="run the published form of a study whose default is smaller")
    parser.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="ROW",
        help="repeat a run of one row (by default the first) and compare it with the committed results",
    )
    parser.add_argument("--seed", type=int, default=None, help="seed that --verify repeats (default: the first)")
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="folder with configuration groups of your own"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="FOLDER", help=f"parent folder of the files (default: {OUTPUT})"
    )
    return parser


def cli() -> None:
    """Run the command ``clbench study``."""
    with errors_in_one_line(lambda: "Interrupted. Rerun the same command to resume."):
        sys.exit(main())


if __name__ == "__main__":
    cli()
