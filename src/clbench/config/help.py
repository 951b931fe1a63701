"""Print the help of ``clbench train``: every option with its value and meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from clbench.config.arguments import connections
from clbench.config.compose import compose, search_path
from clbench.config.declarations import Declaration, declarations, files, find, top_level_options
from clbench.config.options import OPTIONS, conf_dir
from clbench.errors import ConfigError

HELP_FLAGS = ("--help", "-h")
GROUPS = ("strategy", "data", "scenario", "net", "optimizer", "scheduler", "trainer", "logger")
"""Groups whose options are listed. The other groups (launch, sweep, experiment) only set values."""

USAGE = """\
clbench: train a network on a sequence of tasks and measure how much it forgets

clbench train strategy=ewc lam=1e5                       one run, on data that needs no download
clbench train data=split_mnist scenario=class            another data set, another scenario
clbench train -m strategy=ewc,mas lam=1,1e3 seed=0,1,2   a sweep; launch=joblib runs it in parallel
clbench train -m sweep=lam_curve --dry-run               a predefined sweep: list its runs and estimate the time
clbench train output_dir=runs/a                          run it again to resume an interrupted run
clbench train strategy=mas --help                        the options of a choice
"""


def print_help(arguments: Sequence[str]) -> None:
    """Print the groups and their choices, then the options of the choices in ``arguments``."""
    for line in help_lines(arguments):
        print(line)


def help_lines(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the help.

    Raises:
        ConfigError: An argument is not an override, or ``--config-dir`` is not a folder.
        HydraException: Hydra rejects an override.
    """
    cfg = compose(_find_overrides(arguments))
    folders = _config_folders(cfg)
    choices = cfg.hydra.runtime.choices
    names_of_groups = sorted(
        path.name for path in conf_dir().iterdir() if path.is_dir() and path.name not in ("hydra", "study")
    )
    groups = {group: [file.path.stem for file in files(group)] for group in names_of_groups}
    for group, names in groups.items():
        names += [file.stem for folder in folders[:-1] for file in sorted((folder / group).glob("*.yaml"))]
    yield USAGE
    yield "Select one choice of each group with GROUP=CHOICE:"
    yield ""
    width = max(map(len, groups)) + 2
    for group, names in groups.items():
        yield f"  {group + ':':<{width}}{', '.join(names)}"
    yield ""
    yield "Set any option below with KEY=VALUE, or another argument of a class with +KEY=VALUE:"
    connected = set().union(*connections(cfg, "strategy", OPTIONS).values())
    top = top_level_options()
    yield from _section("every run", {key: d for key, d in top.items() if key not in OPTIONS}, cfg)
    for group in GROUPS:
        names = choices.get(group)
        for name in names if isinstance(names, list) else [names]:
            file = find(group, str(name), folders)
            if file is None:
                continue
            found = declarations(file)
            has = [key for key in OPTIONS if key in connected] if group == "strategy" else []
            shown = {key: found[key] if key in found and found[key].meaning else top[key] for key in has}
            shown |= {key: d for key, d in found.items() if key not in top}
            yield from _section(f"{file.choice}: {file.description}", shown, cfg)
    yield ""
    yield "docs/options.md lists the options of every choice."


def _section(title: str, options: dict[str, Declaration], cfg: DictConfig) -> Iterator[str]:
    """Yield a title, and a line for each option that exists in the configuration."""
    rows = [(f"{d.key}={_format_value(cfg, d)}", d.meaning) for d in options.values() if _has_key(cfg, d.key)]
    yield ""
    yield title
    width = min(max((len(left) for left, _ in rows), default=0), 44)
    for left, meaning in rows:
        yield f"  {left:<{width}}  {meaning}".rstrip()


def _has_key(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and name in node


def _format_value(cfg: DictConfig, declaration: Declaration) -> str:
    """Return the value in the syntax of the command line. Interpolations are not resolved."""
    parent, _, name = declaration.key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if OmegaConf.is_interpolation(node, name):
        return str(OmegaConf.to_container(node, resolve=False)[name])  # type: ignore[index,call-overload]
    value = node[name]
    if OmegaConf.is_config(value):
        return str(OmegaConf.to_container(value)).replace("'", "").replace(" ", "")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _find_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides among the arguments of the command. ``--config-dir`` becomes a search path."""
    found, folders, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value or (rest.pop(0) if rest else ".")).absolute())
            if not folders[-1].is_dir():
                raise ConfigError(
                    f"{flag}={folders[-1]}: expected a folder with configuration groups, but there is no such folder."
                )
        elif not argument.startswith("-"):
            found.append(argument)
    if {"-m", "--multirun"} & set(arguments):
        found = [override for line in found for override in _first_value(line)]
    return [*found, search_path(folders)] if folders else found


def _first_value(line: str) -> list[str]:
    """Return an override of a sweep with the first of its values only, without the override if it has no first value."""
    override = OverridesParser.create().parse_override(line)
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        return []
    return [f"{line.partition('=')[0]}={next(override.sweep_string_iterator())}"]


def _config_folders(cfg: DictConfig) -> list[Path]:
    """Return the folders of configuration groups, those of the user first."""
    folders = []
    for source in OmegaConf.select(cfg, "hydra.searchpath") or []:
        kind, _, path = str(source).partition("://")
        folders.append(Path(path) if kind == "file" else Path(str(resources.files(path))))
    return [*folders, conf_dir()]
