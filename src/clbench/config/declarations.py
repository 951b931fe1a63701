"""The declaration of an option: its key, its default and its meaning, read from the line of a yaml file in ``conf/``.

The yaml files are the one place where an option of the command line is declared. ``--help`` and docs/options.md are made of
what this module reads, and a test compares the defaults with those of the Python arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from clbench.config.options import conf_dir

LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#\s].*?|))?(?:\s+# *(?P<meaning>.*))?\s*$")
OF_HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_")


class Declaration(NamedTuple):
    """One option.

    Attributes:
        key: the key as it is typed, ``lam`` or ``strategy.damping``.
        default: the value as it is written.
        meaning: the comment on its line.
    """

    key: str
    default: str
    meaning: str


class ConfigFile(NamedTuple):
    """One yaml file of a group.

    Attributes:
        path: the file.
        group: its folder under ``conf/``; "" for train.yaml.
        conf: the folder of all groups.
    """

    path: Path
    group: str
    conf: Path

    @property
    def choice(self) -> str:
        """What is typed to choose it: ``strategy=ewc``."""
        return f"{self.group}={self.path.stem}"

    @property
    def description(self) -> str:
        """The comment at its head, on one line."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.removeprefix("#").strip())
        return " ".join(lines)

    @property
    def package(self) -> str:
        """The place of its keys in the configuration."""
        first = re.match(r"# @package (\S+)", self.path.read_text(encoding="utf-8"))
        return self.group if first is None else "" if first[1] == "_global_" else first[1]


def files(group: str) -> list[ConfigFile]:
    """Return the yaml files of a group of clbench."""
    return [ConfigFile(path, group, conf_dir()) for path in sorted((conf_dir() / group).glob("*.yaml"))]


def find(group: str, choice: str, folders: Sequence[Path]) -> ConfigFile | None:
    """Return the yaml file of a choice in the first of ``folders`` that has one."""
    paths = [(folder / group / f"{choice}.yaml", folder) for folder in folders]
    return next((ConfigFile(path, group, folder) for path, folder in paths if path.is_file()), None)


def of_a_run() -> dict[str, Declaration]:
    """Return the options at the top level, which every run has."""
    return declarations(ConfigFile(conf_dir() / "train.yaml", "", conf_dir()))


def declarations(file: ConfigFile, package: str | None = None) -> dict[str, Declaration]:
    """Return the options that a file declares, by key, with those of the files that its defaults list names.

    An argument that only refers to another option (``lam: ${lam}``) is none, and neither is what Hydra reads itself.

    Args:
        file: the file.
        package: the place of its keys if another file says it (``/data/base/sequence@data``).
    """
    found: dict[str, Declaration] = {}
    own = dict(own_declarations(file, file.package if package is None else package))
    for earlier, place in inherited(file):
        found |= declarations(earlier, place)
    for key, declaration in own.items():
        if not declaration.meaning and key in found:
            declaration = declaration._replace(meaning=found[key].meaning)
        found[key] = declaration
    return {key: d for key, d in found.items() if "." not in key or not re.fullmatch(r"[$][{].*[}]", d.default)}


def own_declarations(file: ConfigFile, package: str) -> Iterator[tuple[str, Declaration]]:
    """Yield the options that stand in the file itself, those that refer to others included."""
    parents: list[tuple[int, str]] = []
    skipped: int | None = None  # indent of a list, whose entries are one value
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
        if not match["value"] or match["key"] in OF_HYDRA or names[1] == "defaults" or hydra:
            continue
        key = ".".join(filter(None, names))
        yield key, Declaration(key, match["value"].strip("'"), match["meaning"] or "")


def inherited(file: ConfigFile) -> Iterator[tuple[ConfigFile, str | None]]:
    """Yield the files whose keys come before those of ``file``, and the place that it gives them."""
    content = OmegaConf.to_container(OmegaConf.load(file.path), resolve=False)
    for entry in content.get("defaults", []) if file.group and isinstance(content, dict) else []:
        if not isinstance(entry, str) or entry == "_self_":
            continue
        name, _, package = entry.partition("@")
        group, _, choice = (name[1:] if name.startswith("/") else f"{file.group}/{name}").rpartition("/")
        if (earlier := find(group, choice, [file.conf, conf_dir()])) is not None:
            yield earlier, ("" if package == "_global_" else package) if package else None
