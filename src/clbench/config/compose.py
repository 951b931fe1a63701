"""Compose the configuration of a command in this process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config.messages import check_arguments
from clbench.config.options import conf_dir
from clbench.errors import ConfigError


def compose(overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None) -> DictConfig:
    """Return the configuration of ``clbench train OVERRIDES``, with Hydra's own settings under the key ``hydra``.

    Args:
        overrides: The overrides of the command, such as ``["strategy=ewc", "lam=1e5"]``.
        config_dir: A folder with additional configuration groups, like ``--config-dir`` of the command.

    Raises:
        ConfigError: ``overrides`` is not a list of ``option=value``, or ``config_dir`` is not a folder.
        hydra.errors.HydraException: Hydra rejects an override.
    """
    if isinstance(overrides, str):
        raise ConfigError(
            f"overrides={overrides!r}: expected a list of option=value, got a string. Try [{overrides!r}]."
        )
    typed = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    if wrong := [override for override in typed if not isinstance(override, str)]:
        raise ConfigError(f"overrides: expected a list of strings, got {wrong[0]!r}. Try ['strategy=ewc', 'lam=10'].")
    if flag := next((argument for argument in typed if argument in ("-m", "--multirun")), None):
        raise ConfigError(
            f"{flag}: expected the overrides of a single run. Try the command clbench train -m for a sweep."
        )
    check_arguments(typed)
    more = []
    if config_dir is not None:
        folder = Path(config_dir).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"config_dir={config_dir}: expected a folder with configuration groups, but there is no such folder."
            )
        more = [search_path([folder])]
    with hydra_state(), hydra.initialize_config_dir(str(conf_dir()), job_name="train", version_base="1.3"):
        return hydra.compose("train", [*typed, *more], return_hydra_config=True)


class GridComposer:
    """Compose the configurations of a grid, equal to those of Hydra, and faster.

    Hydra first composes the yaml files of the chosen groups, which takes about 0.1 s, and then applies the values. The first
    step is the same for all combinations with the same choices, so it is done once for them.

    Args:
        loader: Hydra's loader of the sweep.
        master: Hydra's configuration of the sweep.
    """

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        name, fixed = master.hydra.job.config_name, list(master.hydra.overrides.hydra)
        _, self._groups = loader._parse_overrides_and_create_caching_repo(name, fixed)
        self._parse = cache(lambda line: OverridesParser.create(loader).parse_overrides([line])[0])
        self._composed = cache(self._compose)

    def __call__(self, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        """Return the configuration without the key ``hydra``, and the choice of each group.

        Raises:
            hydra.errors.HydraException: Hydra rejects an override.
        """
        parsed = [self._parse(line) for line in overrides]
        values = [override for override in parsed if self._is_value(override)]
        base, choices = self._composed(*(line for line, o in zip(overrides, parsed, strict=True) if o not in values))
        cfg = base.copy()
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg, choices

    def _is_value(self, override: Override) -> bool:
        """Return whether Hydra applies the override after it has composed the yaml files."""
        if override.is_hydra_override() or override.is_sweep_override():
            return False
        return isinstance(override.value(), dict) or not self._groups.group_exists(override.key_or_group)

    def _compose(self, *overrides: str) -> tuple[DictConfig, DictConfig]:
        whole = self._loader.load_sweep_config(self._master, list(overrides))
        return without_hydra(whole), whole.hydra.runtime.choices


def search_path(folders: Iterable[Path]) -> str:
    """Return the override that adds ``folders`` to the search path of configuration groups."""
    return f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders)}]"


def quoted(value: str) -> str:
    """Return ``value`` quoted for the grammar of Hydra's overrides."""
    escaped = value.replace("'", "\\'")
    return value if re.fullmatch(r"[\w./-]+", value) else f"'{escaped}'"


def without_hydra(whole: DictConfig) -> DictConfig:
    """Return a copy of a composed configuration without the key ``hydra``."""
    cfg = whole.copy()
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


@contextmanager
def hydra_state() -> Iterator[None]:
    """Clear Hydra's global state, and restore the state of the caller on exit."""
    outer, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer
        HydraConfig.instance().cfg = config
