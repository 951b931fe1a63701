"""``clbench train strategy=mas --help``: every option that the command has, its value and its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from clbench.config.arguments import connections
from clbench.config.compose import search_path
from clbench.config.declarations import Declaration, declarations, find, of_a_run
from clbench.config.options import OPTIONS, conf_dir
from clbench.errors import ConfigError

ASKS = ("--help", "-h")
GROUPS = ("strategy", "data", "scenario", "net", "optimizer", "scheduler", "trainer", "logger")
"""Groups whose options are shown; the others (launch, sweep, experiment) are sets of values."""

USAGE = """\
clbench: train a network on a sequence of tasks and measure how much it forgets

clbench train strategy=ewc lam=1e5                       one run, on data that needs no download
clbench train data=split_mnist scenario=class            another data set, another scenario
clbench train -m strategy=ewc,mas lam=1,1e3 seed=0,1,2   a sweep; launch=joblib runs it in parallel
clbench train -m sweep=lam_curve --dry-run               a ready sweep: what it would run, and how long
clbench train output_dir=runs/a                          the same command again resumes where it stopped
clbench train strategy=mas --help                        the options of a choice
"""


def print_help(arguments: Sequence[str]) -> None:
    """Print the groups and their choices, then the options of what ``arguments`` choose."""
    for line in help_lines(arguments):
        print(line)


def help_lines(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the help.

    Raises:
        HydraException: an argument that the command would refuse too.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", _overrides(arguments), return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        folders = _folders(cfg)
        choices = cfg.hydra.runtime.choices
        groups = {g: loader.get_group_options(g) for g in loader.list_groups("") if g not in ("hydra", "")}
        for folder in folders[:-1]:
            for group in groups:
                groups[group] += [file.stem for file in sorted((folder / group).glob("*.yaml"))]
    yield USAGE
    yield "Choose one of each group with GROUP=CHOICE:"
    yield ""
    width = max(map(len, groups)) + 2
    for group, names in groups.items():
        yield f"  {group + ':':<{width}}{', '.join(names)}"
    yield ""
    yield "Change any value below with KEY=VALUE, or add a key that is not here with +KEY=VALUE:"
    connected = set().union(*connections(cfg, "strategy", OPTIONS).values())
    top = of_a_run()
    run = {key: d for key, d in top.items() if key not in OPTIONS}
    yield from _section("of a run", run, cfg)
    for group in GROUPS:
        names = choices.get(group)
        for name in names if isinstance(names, list) else [names]:
            file = find(group, str(name), folders)
            if file is None:
                continue
            found = declarations(file)
            has = [key for key in OPTIONS if key in connected] if group == "strategy" else []
            own = {key: found[key] if key in found and found[key].meaning else top[key] for key in has}
            own |= {key: d for key, d in found.items() if key not in top}
            yield from _section(f"{file.choice}: {file.description}", own, cfg)
    yield ""
    yield "docs/options.md has the options of every choice."


def _section(title: str, options: dict[str, Declaration], cfg: DictConfig) -> Iterator[str]:
    """A title, and a line for each option that the configuration has."""
    rows = [(f"{d.key}={_written(cfg, d)}", d.meaning) for d in options.values() if _there(cfg, d.key)]
    yield ""
    yield title
    width = min(max((len(left) for left, _ in rows), default=0), 44)
    for left, meaning in rows:
        yield f"  {left:<{width}}  {meaning}".rstrip()


def _there(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and name in node


def _written(cfg: DictConfig, declaration: Declaration) -> str:
    """The value as it is typed; of an interpolation, what stands in the yaml."""
    parent, _, name = declaration.key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if OmegaConf.is_interpolation(node, name):
        return str(OmegaConf.to_container(node, resolve=False)[name])  # type: ignore[index,call-overload]
    value = node[name]
    if OmegaConf.is_config(value):
        return str(OmegaConf.to_container(value)).replace("'", "").replace(" ", "")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The overrides among the arguments of the command; a folder of the user's configurations as a search path."""
    found, folders, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value or (rest.pop(0) if rest else ".")).absolute())
            if not folders[-1].is_dir():
                raise ConfigError(f"{flag}={folders[-1]}: expected a folder with configuration groups, found none")
        elif not argument.startswith("-"):
            found.append(argument)
    return [*found, search_path(folders)] if folders else found


def _folders(cfg: DictConfig) -> list[Path]:
    """The folders of configurations, those of the user first."""
    folders = []
    for place in OmegaConf.select(cfg, "hydra.searchpath") or []:
        kind, _, path = str(place).partition("://")
        folders.append(Path(path) if kind == "file" else Path(str(resources.files(path))))
    return [*folders, conf_dir()]
