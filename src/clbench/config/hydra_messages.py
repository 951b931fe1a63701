"""Translate errors of Hydra and OmegaConf into one-line messages with a remedy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from clbench.config.arguments import TOP_LEVEL
from clbench.config.declarations import declarations, files
from clbench.config.hashing import GROUPS
from clbench.config.known_names import RENAMED, names_in, option_names, renamed, suggest

EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
"""Plugin of Hydra -> the optional dependency of clbench that installs it."""


PATHS = ("output_dir", "data_dir", "init_from")
"""Options whose value is a path."""

LEARNING_RATE = "optimizer.make.lr"
"""Key that every optimizer yaml sets to ``${lr}``."""


def hydra_message(error: BaseException) -> str | None:
    """Return one line for an error of Hydra or OmegaConf that the user can correct, None for any other."""
    text, cause = str(error), error.__cause__
    for pattern, message in MESSAGES.items():
        if match := re.search(pattern, text):
            return message(match)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, OmegaConfBaseException | ConfigCompositionException):
        what, _, key = text.partition("\n    full_key: ")
        return (
            f"{key.split()[0]}: {what}. Try a plain value." if key.strip() else " ".join((text or repr(cause)).split())
        )
    if type(error) is HydraException:  # for example interval(1, 10) in a grid
        return " ".join(text.split())
    if match := re.search(r"Error locating target '(\S+)'", text):
        *_, why = str(cause or "it cannot be found").splitlines()
        return f"_target_={match.group(1)} cannot be imported: {why}"
    return " ".join(text.split()) if isinstance(cause, ImportError | AttributeError) else None


def _unreadable(override: str) -> str:
    """Return the message for an argument that is not written as Hydra expects."""
    key, _, value = override.partition("=")
    if re.search(r"""[{,]\s*(["'])[^"']*\1\s*:""", value):
        plain = re.sub(r"""([{,]\s*)(["'])([^"']*)\2(\s*:)""", r"\1\3\4", value)
        return f"{override}: the keys of a dictionary are written without quotes. Try {shlex.quote(f'{key}={plain}')}."
    if value and re.fullmatch(r"[\w+~./@:-]+", key) and not re.search(r"[][{},\"]", value):
        return f"{override}: a value with such characters needs quotes. Try {shlex.quote(f'{key}={chr(34)}{value}{chr(34)}')}."
    return f"{override!r}: expected option=value. Try lam=10, or -m lam=1,10 for several values, without spaces."


def _invalid_folder(match: re.Match[str]) -> str:
    return match[1]


def _missing_plugin(match: re.Match[str]) -> str:
    kind, name = match.groups()
    return f'the {kind} {name} is not installed. Try pip install -e ".[{EXTRAS[name]}]" in a checkout of clbench.'


def _missing_choice(match: re.Match[str]) -> str:
    group, choice = match.groups()
    group, choice = f"{group}/{choice}".rsplit("/", 1)  # hydra/launcher is a group as well
    if (new := RENAMED.get(f"{group}={choice}")) is not None:
        return f"{group}={choice} was renamed. Try {new}."
    choices = re.findall(r"^\t(\S+)$", match.string, re.MULTILINE) or [file.path.stem for file in files(group)]
    return f"{group}={choice}: expected one of {', '.join(choices)}.{suggest(choice, choices)}"


def _missing_option(match: re.Match[str]) -> str:
    name = match.group(1)
    if files(name):
        return f"{name}: expected one of {', '.join(file.path.stem for file in files(name))}."
    if (new := renamed(name)) is not None:  # a sweep yaml with an option of an earlier version
        return f"{name} was renamed. Try {new}=..."
    if name in TOP_LEVEL:
        return f"{name}: this option is named {TOP_LEVEL[name]}. Try {TOP_LEVEL[name]}=..."
    group = name.partition(".")[0]
    if others := [file.choice for file in files(group) if name in declarations(file)]:
        return f"{name}: the chosen {group} has no option {name}. It is an option of {', '.join(others)}."
    names = names_in(group) if "." in name else option_names()
    added = f", and +{name}=... sets it if the class has it" if "." in name and names else ""
    names = names or [key for each in (*GROUPS, "logger") for key in names_in(each)]
    return f"unknown option {name}.{suggest(name, names)} --help lists all options{added}."


def _other_form(match: re.Match[str]) -> str:
    return f"{match[1]}: expected a value of the form that --help shows for this option, such as a list or one value."


def _several_values(match: re.Match[str]) -> str:
    key, values = match.groups()
    if key in PATHS:
        return f"{key}={values}: a value with a comma needs quotes. Try {shlex.quote(f'{key}={chr(34)}{values}{chr(34)}')}."
    return f"{key}={values}: expected one value, got several. Add -m to run each of them, or try {key}=[{values}] for a list."


def _unnamed_choice(match: re.Match[str]) -> str:
    return f"expected the name of a choice, such as net=mlp, got a value of type {match[1]}. --help lists the choices."


def _nothing_to_delete(match: re.Match[str]) -> str:
    name = match[1]
    if name in (*option_names(), *names_in(name.partition(".")[0])):  # Hydra cannot delete a key whose value is null
        return f"~{name}: the option is null or not set, so it has no value to remove. Remove ~{name}."
    return _missing_option(match)


def _missing_deletion(match: re.Match[str]) -> str:
    return f"~{match[1]}: expected the name of an option or a group to remove, but there is none. --help lists all options."


def _several_values_of_a_function(match: re.Match[str]) -> str:
    key, _, values = match[1].partition("=")
    return f"{key}={values}: expected one value, got several. Add -m to run each of them."


def _missing_reference(match: re.Match[str]) -> str:
    name, key = match.groups()
    option = "" if key is None else f"{key}="
    hint = suggest(name, option_names())
    return f"{option}${{{name}}}: expected a reference to an option, but there is no option {name}.{hint}"


def _unknown_setting_of_hydra(match: re.Match[str]) -> str:
    name, key = match.groups()
    return f"unknown option {key}.{name}. Try another launch=... or sweep=..., whose class has it, or remove it."


def _search_in_a_grid(match: re.Match[str]) -> str:
    kind = match[1].lower()
    return f"{kind}(...): expected values for a grid, got a function of a search. Try lam=1,10, or add sweep=optuna for a search."


def _no_trial(match: re.Match[str]) -> str:
    return "no trial of the search is complete. The lines above have their errors. Try other values for the search."


def _blocked(match: re.Match[str]) -> str:
    return f"_target_={match[1]}: Hydra refuses to call this function. Try the dotted path of a class, such as my_module.MyClass."


def _added_choice(match: re.Match[str]) -> str:
    group, choice = match[1], "..." if match.re.groups < 2 else match[2]
    return f"+{group}={choice}: the group {group} already has a choice. Try {group}={choice}."


def _added_option(match: re.Match[str]) -> str:
    key, override = match.groups()
    if key == LEARNING_RATE:
        return f"+{override}: this option is named lr. Try lr={override.partition('=')[2]}."
    return f"+{override}: the option {key} already exists. Try {override}."


def _missing_folder(match: re.Match[str]) -> str:
    return f"--config-dir={match[1]}: expected a folder with configuration groups, but there is no such folder."


MESSAGES: dict[str, Callable[[re.Match[str]], str]] = {
    r"ConfigError raised while resolving interpolation: (.*)": _invalid_folder,
    r"Error merging override (.*)": _other_form,
    rf"Could not find 'hydra/(launcher|sweeper)/({'|'.join(EXTRAS)})'": _missing_plugin,
    r"Could not (?:find|load) '(\w+)/([^'\s]*)'": _missing_choice,
    r"Config group override must be a string or a list\. Got (\w+)": _unnamed_choice,
    r"Multiple values for (\w+)\. To override a value use 'override \S+: ([^']+)'": _added_choice,
    r"^(\w+) appears more than once in the final defaults list": _added_choice,
    r"Could not delete '(.*)'\. No match in the defaults list": _missing_deletion,
    r"Sweep parameters '(.+)' requires --multirun": _several_values_of_a_function,
    r"Target '(\S+)' is blocklisted": _blocked,
    r"Interpolation key '(.+)' not found(?:\s+full_key: (\S+))?": _missing_reference,
    r"unexpected keyword argument '(\w+)'\"?\)\s+full_key: (hydra[.]\w+)": _unknown_setting_of_hydra,
    r"does not support sweep type : (\w+)_SWEEP": _search_in_a_grid,
    r"^No trials are completed yet": _no_trial,
    r"Additional config directory '(.+)' not found": _missing_folder,
    r"Could not override '(\S+?)'": _missing_option,
    r"Could not delete from config\. '(\S+?)' does not exist": _nothing_to_delete,
    r"An item is already at '(\S+?)'\.\s+Either remove \+ prefix: '(.+?)'": _added_option,
    r"Ambiguous value for argument '(\S+?)=(.+)'": _several_values,
}
"""Pattern in the text of an error of Hydra -> function that returns the message."""
