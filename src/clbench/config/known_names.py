"""Names of options: those there are, those of an earlier version, and the nearest one to a name that was mistyped."""

from __future__ import annotations

from difflib import get_close_matches

from omegaconf import DictConfig, OmegaConf

from clbench.config.declarations import declarations, files, of_a_run
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
"""Names of an earlier version -> their names now; used for error texts only."""


def renamed(key: str) -> str | None:
    """Return the present name of a dotted configuration ``key`` of an earlier version, None if it has always had its name."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def refuse_renamed_key(key: str) -> None:
    """Raise ConfigError if the option ``key`` that was typed is one of an earlier version."""
    if (new := renamed(key)) is not None:
        raise ConfigError(f"{key} is now {new}: write {new}=...")


def refuse_renamed(cfg: DictConfig) -> None:
    """Raise ConfigError if a yaml of the user's has a key of an earlier version."""
    absent = object()
    for old, new in RENAMED.items():
        if "=" not in old and OmegaConf.select(cfg, old, default=absent) is not absent:
            raise ConfigError(f"{old} is now {new}: rename it in your yaml")


def near_name(name: str, there: list[str]) -> str:
    """A question, if one of those there are nearly has that name."""
    close = get_close_matches(name.lower(), there, 1)
    return f"; did you mean {close[0]}?" if close else ""


def option_names() -> list[str]:
    """Return the names of the options at the top level."""
    return [key for key in of_a_run() if key != "hydra"]


def names_in(group: str) -> list[str]:
    """Return the dotted names that some yaml of ``group`` declares."""
    return sorted({key for file in files(group) for key in declarations(file) if key.startswith(f"{group}.")})
