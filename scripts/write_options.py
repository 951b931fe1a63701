"""Write docs/options.md from the yaml files in conf/: ``python scripts/write_options.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clbench.config.arguments import connections
from clbench.config.declarations import ConfigFile, Declaration, declarations, files, find, top_level_options
from clbench.config.options import OPTIONS, conf_dir
from clbench.config.values import RULES, describe

PAGE = Path(__file__).resolve().parents[1] / "docs/options.md"

INTRO = """\
# Every option

This page is generated from the files in `conf/` by `python scripts/write_options.py`. `clbench train strategy=mas --help`
prints the same options in the terminal, with the values of your command.
"""

GROUPS = {
    "strategy": ("Strategies", "Options without a prefix are top-level options that the strategy uses."),
    "data": (
        "Data",
        "All presets have the options of the first table, and those of their section. See [data](data.md).",
    ),
    "scenario": ("Scenarios", ""),
    "net": ("Nets", ""),
    "optimizer": (
        "Optimizers",
        "Set any other argument of the class by `+optimizer.make.KEY=VALUE`. Use another class by "
        "`optimizer.make._target_=torch.optim.RMSprop`, and remove options that it does not have by `~optimizer.make.momentum`.",
    ),
    "scheduler": ("Schedules", ""),
    "trainer": ("Trainer", "Set any other argument of Lightning's Trainer by `+trainer.KEY=VALUE`."),
    "logger": ("Loggers", ""),
    "launch": ("Launchers", "A launcher starts the runs of a sweep. See [clusters](clusters.md)."),
    "sweep": ("Sweeps", "Predefined sets of values. See [sweeps](sweeps.md)."),
    "experiment": ("Experiments", "Configurations of published results. See [results](results.md)."),
}
"""Groups in the order of the page, with a title and a note each."""


def page() -> str:
    """Return the text of docs/options.md."""
    return "\n".join(lines()).rstrip() + "\n"


def lines() -> Iterator[str]:
    """Yield the lines of the page."""
    top = top_level_options()
    yield INTRO
    yield "## Every run"
    yield ""
    yield from table((d for key, d in top.items() if key not in OPTIONS), values=True)
    yield ""
    for group, (title, text) in GROUPS.items():
        yield from (f"## {title}", "")
        if text:
            yield from (text, "")
        if group in ("sweep", "experiment"):
            yield from ("| | |", "|---|---|")
            yield from (f"| `{file.choice}` | {cell(file.description)} |" for file in files(group))
            yield ""
            continue
        common: dict[str, Declaration] = {}
        if group == "data":
            base = find("data/base", "sequence", [conf_dir()])
            assert base is not None
            common = declarations(base, "data")
            yield from table(common.values())
            yield ""
        for file in files(group):
            yield from (f"### {file.choice}", "", f"{cell(file.description[0].upper() + file.description[1:])}.", "")
            if own := own_options(file, top, common):
                yield from (*table(own), "")


def own_options(file: ConfigFile, top: dict[str, Declaration], common: dict[str, Declaration]) -> list[Declaration]:
    """Return the options of a file without those that all files of its group share."""
    found = declarations(file)
    if file.group == "strategy":
        found = {key: found.get(key, top[key]) for key in options_of_file(file)} | found
    described = {key: d if d.meaning else d._replace(meaning=top[key].meaning) for key, d in found.items()}
    return [d for key, d in described.items() if common.get(key) != d]


def options_of_file(file: ConfigFile) -> list[str]:
    """Return the top-level options that the yaml of a strategy connects."""
    cfg = OmegaConf.merge(OmegaConf.load(conf_dir() / "train.yaml"), OmegaConf.load(file.path))
    assert isinstance(cfg, DictConfig)
    used = set().union(*connections(cfg, "strategy", OPTIONS).values())
    return [name for name in OPTIONS if name in used]


def table(options: Iterable[Declaration], values: bool = False) -> Iterator[str]:
    """Yield a table with a row per option, or nothing without options."""
    rows = list(options)
    if not rows:
        return
    head = ["option", "default", *(["values"] if values else []), "meaning"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for d in rows:
        rule = [describe(RULES[d.key]) if d.key in RULES else ""] if values else []
        yield f"| {' | '.join([f'`{d.key}`', f'`{d.default}`', *map(cell, [*rule, d.meaning])])} |"


def cell(text: str) -> str:
    """Escape text for Markdown, also in a table."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
