"""Write a commented skeleton and print the command that runs it: ``clbench new strategy|net|data|metric NAME``."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from clbench.config.messages import errors_in_one_line
from clbench.config.options import conf_dir
from clbench.errors import ConfigError
from clbench.metrics.extra import RESERVED
from clbench.metrics.registry import BUILT_IN

SKELETONS = Path(__file__).parent / "skeletons"
KINDS = {
    "strategy": "strategy=NAME",
    "net": "net=NAME",
    "data": "data=NAME",
    "metric": "metrics.extra=[NAME.NAME]",
}
"""Kind of skeleton -> the option of ``clbench train`` that selects it."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
VALUES = ("true", "false", "null", "none", "nan", "inf")
"""Names that Hydra or Python parses as a value."""


def write(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the skeleton of a ``kind`` called ``name`` into ``folder`` and return its files.

    Args:
        kind: One of ``KINDS``.
        name: Name of the Python file, of the class or function in it, and of the choice in the configuration.
        folder: Folder of the Python file. Its yaml, if it needs one, is written to ``more/KIND/`` below it.

    Raises:
        ConfigError: The name cannot be used, or a file already exists. Then no file is written.
    """
    files = {folder / f"{name}.py": SKELETONS / f"{kind}.py.txt"}
    if (yaml := SKELETONS / f"{kind}.yaml.txt").is_file():
        files[folder / "more" / kind / f"{name}.yaml"] = yaml
    check_name(kind, name)
    for file in files:
        if file.exists():
            raise ConfigError(f"{file}: expected a new file, but it exists. Try another name, or remove it.")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"NAME={name}: expected a new name, but Python already has a module {name}. Try my_{name}.")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    for file, skeleton in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--folder={folder}: expected a writable folder ({error.strerror}).") from error
        text = skeleton.read_text(encoding="utf-8").replace("CLASS", class_name).replace("NAME", name)
        file.write_text(text, encoding="utf-8")
    return list(files)


def check_name(kind: str, name: str) -> None:
    """Raise ConfigError if ``name`` is not a Python name in lower case, or one of clbench's own choices."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or name in VALUES:
        near = "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")
        hint = f" Try {near}." if NAME.fullmatch(near) and not keyword.iskeyword(near) and near not in VALUES else ""
        raise ConfigError(f"NAME={name}: expected a Python name in lower case, such as my_{kind}.{hint}")
    if (conf_dir() / kind / f"{name}.yaml").is_file():
        raise ConfigError(f"NAME={name}: expected a new name, but clbench already has {kind}={name}. Try my_{name}.")
    if kind == "metric" and name in (*BUILT_IN, *RESERVED):
        raise ConfigError(
            f"NAME={name}: expected a new name, but clbench already has a metric or column {name}. Try my_{name}."
        )


def command_of(kind: str, name: str, folder: Path) -> str:
    """Return the command that trains with the files of ``write``."""
    more = f"--config-dir {shlex.quote(str(folder / 'more'))} " if kind != "metric" else ""
    option = shlex.quote(KINDS[kind].replace("NAME", name))
    return f"PYTHONPATH={shlex.quote(str(folder))} clbench train {more}{option}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a skeleton and print its files and the command that runs it."""
    asked = _parser().parse_args(arguments)
    folder = Path(asked.folder)
    for file in write(asked.kind, asked.name, folder):
        print(f"wrote {file}")
    print(f"run it with: {command_of(asked.kind, asked.name, folder)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "clbench new", description="Write a commented skeleton that runs, and print the command to run it."
    )
    parser.add_argument("kind", choices=KINDS, help="kind of skeleton")
    parser.add_argument("name", metavar="NAME", help="a new Python name in lower case, such as my_ewc")
    parser.add_argument("--folder", default=".", help="folder for the files (default: the current folder)")
    return parser


def cli() -> None:
    """Run the command ``clbench new``."""
    with errors_in_one_line():
        main()


if __name__ == "__main__":
    cli()
