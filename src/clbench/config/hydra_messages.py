"""Translate the errors of Hydra and OmegaConf into one line that says what to write."""

from __future__ import annotations

import re
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from clbench.config.arguments import SAID_AS
from clbench.config.known_names import RENAMED, names_in, near_name, option_names, renamed

EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
"""Plugins of Hydra, and which extra of ours brings each."""


def hydra_message(error: BaseException) -> str | None:
    """Return one line for an error of Hydra or OmegaConf that the user can correct, None for any other."""
    text, cause = str(error), error.__cause__
    for pattern, describe in DESCRIPTIONS.items():
        if match := re.search(pattern, text):
            return describe(match)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is no option=value: write lam=10, and -m lam=1,10 for several values, without spaces"
        )
    if isinstance(error, OmegaConfBaseException | ConfigCompositionException):
        return " ".join((text or repr(cause)).split())
    if type(error) is HydraException:  # interval(1, 10) in a grid, say
        return " ".join(text.split())
    if match := re.search(r"Error locating target '(\S+)'", text):
        *_, why = str(cause or "it cannot be found").splitlines()
        return f"_target_={match.group(1)} cannot be imported. {why}"
    return " ".join(text.split()) if isinstance(cause, ImportError | AttributeError) else None


def _missing_plugin(match: re.Match[str]) -> str:
    kind, name = match.groups()
    return f'the {kind} {name} is a package of its own: in a checkout, pip install -e ".[{EXTRAS[name]}]"'


def _missing_choice(match: re.Match[str]) -> str:
    group, choice = match.groups()
    if f"{group}={choice}" in RENAMED:
        return f"{group}={choice} is now {RENAMED[f'{group}={choice}']}"
    there = re.findall(r"^\t(\S+)$", match.string, re.MULTILINE)
    return f"{group}={choice} does not exist: use one of {', '.join(there)}" + near_name(choice, there)


def _missing_option(match: re.Match[str]) -> str:
    name = match.group(1)
    if (new := renamed(name)) is not None:  # of a sweep that a yaml describes
        return f"{name} is now {new}: write {new}=..."
    if name in SAID_AS:
        return f"there is no option {name}: write {SAID_AS[name]}=..."
    there = names_in(name.partition(".")[0]) if "." in name else option_names()
    more = f"; +{name}=... adds a new key" if "." in name else ""
    return f"there is no option {name}: --help lists what there is{more}" + near_name(name, there)


def _several_values(match: re.Match[str]) -> str:
    key, values = match.groups()
    return f"{key}={values} has several values: add -m to run each of them, or write {key}=[{values}] for a list"


def _no_name(match: re.Match[str]) -> str:
    return f"a group is chosen by a name, such as net=mlp, not by a value ({match[1]}): --help lists the choices"


def _added_choice(match: re.Match[str]) -> str:
    group, choice = match.groups()
    return f"+{group}={choice}: {group} has a choice already. Write {group}={choice}"


def _missing_folder(match: re.Match[str]) -> str:
    return f"--config-dir={match[1]}: expected a folder with configuration groups, found none"


DESCRIPTIONS: dict[str, Callable[[re.Match[str]], str]] = {
    rf"Could not find 'hydra/(launcher|sweeper)/({'|'.join(EXTRAS)})'": _missing_plugin,
    r"Could not find '(\w+)/([^'\s]*)'": _missing_choice,
    r"Config group override must be a string or a list\. Got (\w+)": _no_name,
    r"Multiple values for (\w+)\. To override a value use 'override \S+: ([^']+)'": _added_choice,
    r"Additional config directory '(.+)' not found": _missing_folder,
    r"Could not override '(\S+?)'": _missing_option,
    r"Ambiguous value for argument '(\S+)=(\S+)'": _several_values,
}
"""Text of an error of Hydra (a pattern) -> what describes it."""
