"""Read the declarations of options (key, default, meaning) from the yaml files in ``conf/``.

An option of the command line is declared in one place: a line of a yaml file. ``--help`` and docs/options.md are generated
from these lines. A test compares the defaults with those of the Python arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from omegaconf import OmegaConf

from clbench.config.options import conf_dir

LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#\s].*?|))?(?:\s+# *(?P<meaning>.*))?\s*$")
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_")


class Declaration(NamedTuple):
    """An option as declared in a yaml file.

    Attributes:
        key: Dotted key, such as ``lam`` or ``strategy.damping``.
        default: Default value, as written in the file.
        meaning: Comment on the line.
    """

    key: str
    default: str
    meaning: str


class ConfigFile(NamedTuple):
    """A yaml file of a configuration group.

    Attributes:
        path: Path of the file.
        group: Folder of the file under ``conf/``; "" for train.yaml.
        conf: Folder of all groups.
    """

    path: Path
    group: str
    conf: Path

    @property
    def choice(self) -> str:
        """The override that selects this file, such as ``strategy=ewc``."""
        return f"{self.group}={self.path.stem}"

    @property
    def description(self) -> str:
        """The comment at the top of the file, joined to one line."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.removeprefix("#").strip())
        return " ".join(lines)

    @property
    def package(self) -> str:
        """The key under which Hydra places the contents of the file."""
        first = re.match(r"# @package (\S+)", self.path.read_text(encoding="utf-8"))
        return self.group if first is None else "" if first[1] == "_global_" else first[1]


def files(group: str) -> list[ConfigFile]:
    """Return the yaml files of a group in ``conf/``."""
    return [ConfigFile(path, group, conf_dir()) for path in sorted((conf_dir() / group).glob("*.yaml"))]


def find(group: str, choice: str, folders: Sequence[Path]) -> ConfigFile | None:
    """Return the yaml file of ``choice`` from the first folder that contains it, None if no folder does."""
    paths = [(folder / group / f"{choice}.yaml", folder) for folder in folders]
    return next((ConfigFile(path, group, folder) for path, folder in paths if path.is_file()), None)


@cache
def top_level_options() -> Mapping[str, Declaration]:
    """Return the declarations of the top-level options, which every run has. The file is read once, as a sweep asks often."""
    return MappingProxyType(declarations(ConfigFile(conf_dir() / "train.yaml", "", conf_dir())))


def declarations(file: ConfigFile, package: str | None = None) -> dict[str, Declaration]:
    """Return the options that a file declares, by key, including those of the files in its defaults list.

    Arguments that only refer to another option (``lam: ${lam}``) and keys that Hydra reads itself are excluded.

    Args:
        file: A yaml file.
        package: Package that another file assigns to this one (``/data/base/sequence@data``), None for its own.
    """
    found: dict[str, Declaration] = {}
    in_file = dict(declarations_in(file, file.package if package is None else package))
    for parent, assigned in parents_of(file):
        found |= declarations(parent, assigned)
    for key, declaration in in_file.items():
        if not declaration.meaning and key in found:
            declaration = declaration._replace(meaning=found[key].meaning)
        found[key] = declaration
    return {key: d for key, d in found.items() if "." not in key or not re.fullmatch(r"[$][{].*[}]", d.default)}


def declarations_in(file: ConfigFile, package: str) -> Iterator[tuple[str, Declaration]]:
    """Yield the options that the file itself declares, including references to other options."""
    parents: list[tuple[int, str]] = []
    skipped: int | None = None  # indentation of a list; its entries are one value
    for line in file.path.read_text(encoding="utf-8").splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("- "):
            skipped = indent if skipped is None else min(indent, skipped)
            continue
        if skipped is not None and indent > skipped:
            continue
        skipped = None
        match = LINE.match(line)
        if match is None:
            continue
        parents = [(at, name) for at, name in parents if at < indent]
        names = [package, *(name for _, name in parents), match["key"]]
        parents.append((indent, match["key"]))
        hydra = names[1] == "hydra" and file.group != "launch"
        if not match["value"] or match["key"] in HYDRA_KEYS or names[1] == "defaults" or hydra:
            continue
        key = ".".join(filter(None, names))
        yield key, Declaration(key, match["value"].strip("'"), match["meaning"] or "")


def parents_of(file: ConfigFile) -> Iterator[tuple[ConfigFile, str | None]]:
    """Yield the files in the defaults list of ``file``, each with the package that ``file`` assigns to it."""
    content = OmegaConf.to_container(OmegaConf.load(file.path), resolve=False)
    for entry in content.get("defaults", []) if file.group and isinstance(content, dict) else []:
        if not isinstance(entry, str) or entry == "_self_":
            continue
        name, _, package = entry.partition("@")
        group, _, choice = (name[1:] if name.startswith("/") else f"{file.group}/{name}").rpartition("/")
        if (parent := find(group, choice, [file.conf, conf_dir()])) is not None:
            yield parent, ("" if package == "_global_" else package) if package else None
