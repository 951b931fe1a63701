"""Read and write config.json, the configuration of a run in plain values.

clbench only reads config.json. The files ``.hydra/*.yaml`` in the same folder are for users and for Hydra.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import SCHEMA, config_hash, content_hash, derived_keys
from clbench.config.options import conf_dir, options_of
from clbench.errors import ConfigError
from clbench.runs.folder import atomically

FILE = "config.json"
RESTORE = "Rerun the command of the run in this folder, which writes the file again, or restore it."
KEYS = {
    **{"schema": int, "config_hash": str, "content_hash": str, "config": dict},
    **{"choices": dict, "options": list, "derived": dict, "overrides": list},
}
"""Keys of config.json and the types of their values."""


def write_config(path: Path, cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write config.json into the run folder ``path``.

    Args:
        path: The run's folder.
        cfg: The composed configuration, without the key ``hydra``.
        choices: Name of the yaml chosen in each group.
        overrides: The overrides of the command.
    """
    content = {
        "schema": SCHEMA,
        "config_hash": config_hash(cfg, choices),
        "content_hash": content_hash(cfg),
        "choices": {str(group): choice for group, choice in choices.items() if not str(group).startswith("hydra/")},
        "options": options_of(cfg),
        "derived": derived_keys(cfg),
        "overrides": list(overrides),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    atomically(path / FILE, partial(Path.write_text, data=json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def read_config(path: Path) -> dict[str, Any]:
    """Return the contents of config.json in the run folder ``path``. ``write_config`` lists the keys.

    Raises:
        ConfigError: The file does not exist, cannot be read, was written by another version of clbench, or contains values
            that are not plain.
    """
    file = path / FILE
    if not file.is_file():
        if (path / ".hydra/config.yaml").is_file():
            raise ConfigError(
                f"{path}: expected a config.json, found the files of a version of clbench without schema numbers. Only clbench "
                "report can read them."
            )
        found = "found no config.json" if path.is_dir() else "but there is no such folder"
        raise ConfigError(
            f"{path}: expected a run folder, {found}. Try the output_dir of a run, or the folder of one run in a sweep."
        )
    try:
        content: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: expected a config.json of clbench ({error}). {RESTORE}") from error
    wrong = [
        key for key, kind in KEYS.items() if not isinstance(content, dict) or not isinstance(content.get(key), kind)
    ]
    if wrong:
        raise ConfigError(f"{file}: expected a config.json of clbench (missing or wrong: {wrong[0]}). {RESTORE}")
    schema = content["schema"]
    if schema != SCHEMA:
        raise ConfigError(
            f"{file}: expected schema {SCHEMA}, got schema {schema} of another version of clbench. Try the version that wrote it."
        )
    if "${" in json.dumps(content["config"]):
        raise ConfigError(f"{file}: expected plain values, got a reference ${{...}}. Restore the file, or replace it.")
    return dict(content)


def configuration(content: Mapping[str, Any], data_dir: str | os.PathLike[str] | None = None) -> DictConfig:
    """Return the configuration in ``content`` of ``read_config``, with ``data_dir``, by default the current one, as data folder.

    All other values are plain. A reference such as ``${oc.env:HOME}`` would be evaluated, although the file may be from
    somebody else.
    """
    cfg: DictConfig = OmegaConf.create(content["config"])
    for key, raw in content["derived"].items():
        if re.fullmatch(r"\$\{data_dir\}(/[^$]*)?", raw):
            OmegaConf.update(cfg, key, raw)
    cfg.data_dir = OmegaConf.load(conf_dir() / "train.yaml").data_dir if data_dir is None else os.fspath(data_dir)
    return cfg
