"""Names of options: all current names, renamed ones, and suggestions for mistyped ones."""

from __future__ import annotations

import re
from difflib import get_close_matches

from omegaconf import DictConfig, OmegaConf

from clbench.config.declarations import declarations, files, top_level_options
from clbench.errors import ConfigError

RENAMED = {
    "data.cut": "data.split",
    "choose_lam_on": "select_lam_on_first_tasks",
    "first_tasks": "stop_after_task",
    "share": "share_first_task",
    "net.without": "net.drop_layer",
    "strategy.draws": "strategy.label_samples",
    "optimizer.lr": "lr",
    "net=own": "net=custom",
    "net=any": "net=module",
    "strategy=joint_scratch": "strategy=joint_from_scratch",
}
"""Names in an earlier version -> current names. Only used in error messages."""


def renamed(key: str) -> str | None:
    """Return the current name of a configuration ``key`` of an earlier version, None if it was not renamed."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def refuse_renamed_key(key: str, value: str) -> None:
    """Raise ConfigError if the override ``key=value`` sets an option that was renamed."""
    if key == "optimizer.lr":
        raise ConfigError(
            f"{key}={value}: this option is named lr. Try lr={value or '...'}, which sets optimizer.make.lr."
        )
    if (new := renamed(key)) is not None:
        raise ConfigError(f"{key} was renamed. Try {new}=...")


def refuse_unnamed_choice(key: str, value: str) -> None:
    """Raise ConfigError if the override ``key=value`` chooses no yaml file, or several of a group that has one."""
    group = key.lstrip("+")
    is_list = value.startswith("[") and group not in ("logger", "experiment")
    if group and files(group) and (is_list or re.fullmatch(r"|null|true|false|[-+]?[0-9.]+", value)):
        raise ConfigError(f"{key}={value}: expected one of {', '.join(file.path.stem for file in files(group))}.")


def refuse_renamed(cfg: DictConfig) -> None:
    """Raise ConfigError if a yaml file of the user has an option that was renamed."""
    missing = object()
    for old, new in RENAMED.items():
        if "=" not in old and OmegaConf.select(cfg, old, default=missing) is not missing:
            raise ConfigError(f"{old} was renamed. Write {new} in your yaml file instead.")


def name_at_top_level(key: str) -> str:
    """Return " This option is named lam." for the key ``strategy.lam`` of a top-level option, "" for any other key."""
    name = key.rpartition(".")[2]
    return f" This option is named {name}." if "." in key and name in option_names() else ""


def suggest(name: str, names: list[str]) -> str:
    """Return " Did you mean X?" with the most similar of ``names``, "" if none is similar."""
    close = get_close_matches(name.lower(), names, 1)
    return f" Did you mean {close[0]}?" if close else ""


def option_names() -> list[str]:
    """Return the names of the top-level options."""
    return [key for key in top_level_options() if key != "hydra"]


def names_in(group: str) -> list[str]:
    """Return the dotted names of all options that the yaml files of ``group`` declare."""
    return sorted({key for file in files(group) for key in declarations(file) if key.startswith(f"{group}.")})
