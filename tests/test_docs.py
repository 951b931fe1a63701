"""Every command and every Python example of README.md and docs/ is executed, in a folder of its own, page by page.

A page is followed from top to bottom, as a reader would: a block that begins with a comment that is a file name becomes
that file, commands and Python run where those files are. Commands of clbench run in this process, others in a shell.
Three tables say what is not done as written: READER_HAS, SHORTER and NOT_RUN.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from clbench.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SMALL = "data.tasks=2 steps=2 trainer=cpu"
"""Added to every training command, but for what it says itself: it is composed as written, and trains two tasks for two steps."""

SHORTER = {
    r"(lam|seed)=([\w.]+),.*": r"\1=\2",  # of the values of a sweep the first
    r"data\.examples_per_task=\[.*": "data.examples_per_task=[60,30]",
    r"data\.tasks=5": "data.tasks=2",
    r"data\.workers=2": "data.workers=0",  # tests/data start workers
    r"launch=joblib": "launch=serial",  # tests/config/test_messages.py starts processes
    r"output_dir=/scratch/sweep": "output_dir=scratch/sweep",
}
"""Arguments of training commands: what is written -> what is run."""

READER_HAS = {
    "statistics.md": ("mkdir outputs && cp -r tests/finished_runs/task_incremental outputs/sweep",),
    "reports.md": (
        "python -m clbench.train -m strategy=ewc,mas seed=0,1 output_dir=outputs/sweep",
        "python -m clbench.train output_dir=runs/a data.tasks=4",
        "python -m clbench.train strategy=mas output_dir=runs/b",
    ),
    "lam.md": ("own_strategy.md",),
}
"""What the reader of a page has done before: commands, or files that another page shows."""

NOT_RUN = {
    r"pip install|uv venv|source \.venv": "sets up an environment; .ci/run does it, by the line of the README",
    r".* launch=slurm": "needs Slurm; tests/ compose it, and start jobs by launch=submitit_local where that is installed",
    r"clbench study \w+( --full)?$": "trains for hours; tests/study compose its runs",
    r"wandb (sweep|agent)": "needs a login; tests/training/test_loggers.py runs the command that an agent would",
    r"wandb leet": "draws on a terminal; tests/training/test_loggers.py reads what was logged with its inspect",
    r"(OMP_NUM_THREADS=1 )?python scripts/": "measures for minutes or hours; that it has the options is looked up below",
}
"""Commands (from their beginning) that are not run here -> why, and what runs them."""

COMPOSED = {
    r"trainer=gpu": "needs a GPU",
    r"trainer=ddp": "starts processes; tests/training/test_processes.py does",
    r"net=resnet|net=torchvision": "trains a large net: its configuration is composed, and no run is made",
    r"net=timm .*net.pretrained=true": "needs a download",
}
"""Training commands (anywhere in them) that are only composed -> why."""

DIFFERENT = ("clbench.runs.diff:cli", 1)
"""Two runs differ, as in diff: no failure."""

DOWNLOADED = {
    file.stem: file
    for file in (ROOT / "conf/data").glob("*.yaml")
    if "torchvision.datasets" in file.read_text(encoding="utf-8")
}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
FENCE = re.compile(r"^( *)```(bash|python|yaml)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INSTALLED = re.compile(r"# pip install ([\w ]+)\n")
FILE = re.compile(r"(?:# @package _global_\n)?# ([\w./-]+\.(?:py|yaml))\n")


@dataclass
class Block:
    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(match[2], dedent(match[3]), text[: match.start()].count("\n") + 1)


def commands(text: str) -> list[str]:
    """The commands of a shell block, without comments; lines that end in a backslash are one command."""
    lines = text.replace("\\\n", " ").splitlines()
    return [c for line in lines if (c := shlex.join(shlex.split(line, comments=True)))]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """``shell(command)``: run it in tmp_path; its output, AssertionError if it fails."""
    for name in ("src", "conf", "scripts", "tests"):
        if (ROOT / name).is_dir():
            (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = set(sys.modules)
    yield lambda command: execute(command, monkeypatch)
    for name in set(sys.modules) - before:  # modules of the examples
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)) and not Path(file).is_relative_to(tmp_path / "src"):
            del sys.modules[name]


def execute(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(re.match(pattern, command) for pattern in NOT_RUN):
        return
    words = shlex.split(command)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    entry, arguments = entry_of(words)
    if entry is None:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return
    if entry == "clbench.train:cli" and "--help" not in arguments:
        arguments = smaller(arguments)
    if entry == "clbench.study.__main__:cli" and "benchmark" in arguments:  # tests/study run one
        arguments = list(dict.fromkeys([*arguments, "--dry-run"]))
    elif entry == "clbench.study.__main__:cli" and not {"--list", "--verify"} & set(arguments):
        arguments = [*arguments, "--quick", *(["launch=serial"] if "launch=serial" not in arguments else [])]
    module, _, function = entry.partition(":")
    monkeypatch.setattr(sys, "argv", [entry, *arguments])
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        if end.code and (entry, end.code) != DIFFERENT:
            pytest.fail(f"{command}\n{end.code}")
    finally:
        GlobalHydra.instance().clear()


def entry_of(words: list[str]) -> tuple[str | None, list[str]]:
    """(``module:function`` of a command of clbench, its arguments); (None, words) of any other."""
    if words[:3] == ["python", "-m", "clbench"]:
        words = words[2:]
    if words[0] == "clbench" and words[1] in COMMANDS:
        words = ["python", "-m", COMMANDS[words[1]][0], *words[2:]]
    if words[0] in SCRIPTS:
        return SCRIPTS[words[0]], words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("clbench."):
        return f"{words[2]}.__main__:cli" if is_package(words[2]) else f"{words[2]}:cli", words[3:]
    return None, words


def is_package(module: str) -> bool:
    return hasattr(importlib.import_module(module), "__path__")


def smaller(arguments: list[str]) -> list[str]:
    """A training command as SHORTER and SMALL have it; only composed where it is large or its data is not there."""
    written = " ".join(arguments)
    small = [a for a in SMALL.split() if a.partition("=")[0] + "=" not in written]
    if needs_download(written) and "samples=" not in written and "examples_per_task=" not in written:
        small.append("data.examples_per_task=100")
    if re.search("|".join(COMPOSED), written) or (needs_download(written) and not os.environ.get("CLBENCH_DATA_DIR")):
        small += ["--cfg", "job"]
        arguments = [a for a in arguments if a != "-m"]
        arguments = [a.split(",")[0] if "[" not in a else a for a in arguments]
    return [shorter(a) for a in arguments] + small


def shorter(argument: str) -> str:
    for written, run in SHORTER.items():
        if re.fullmatch(written, argument):
            return re.sub(written, run, argument)
    return argument


def needs_download(arguments: str) -> bool:
    data = re.search(r"\bdata=(\w+)", arguments)
    return "experiment=" in arguments or bool(data and data[1] in DOWNLOADED)


def follow(page: Path, shell, tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page", **given(page.name)}
    for earlier in READER_HAS.get(page.name, ()):
        if earlier.endswith(".md"):
            [as_file(block, tmp_path) for block in blocks(page.with_name(earlier))]
        else:
            shell(earlier)
    missing = set()
    for block in blocks(page):
        if as_file(block, tmp_path):
            continue
        if lacks := missing_packages(block):
            missing |= lacks
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            for figure in re.findall(r'savefig\("(.+?)"', block.text):
                assert (tmp_path / figure).stat().st_size > 1000, f"{page.name}: {figure} is empty"
        elif block.language == "bash":
            for command in commands(block.text):
                shell(command)
    if missing:
        pytest.skip(f"the blocks that need {', '.join(sorted(missing))}; all others were run")


def missing_packages(block: Block) -> set[str]:
    """Return the packages that a Python block names in its first line, ``# pip install NAME``, and that are not installed."""
    named = INSTALLED.match(block.text) if block.language == "python" else None
    return {name for name in named[1].split() if importlib.util.find_spec(name) is None} if named else set()


def as_file(block: Block, folder: Path) -> bool:
    """Write a block that begins with the name of a file as that file; whether it did."""
    named = FILE.match(block.text)
    if named:
        path = folder / named[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        importlib.invalidate_caches()
    return named is not None


def given(page: str) -> dict[str, Any]:
    """Names that the Python of a page uses as the reader's own."""
    if page != "README.md":
        return {}
    import lightning as L
    import torch

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Module()
    task = torch.utils.data.TensorDataset(torch.randn(1000, 4), torch.randint(3, (1000,)))
    loader = torch.utils.data.DataLoader(task, batch_size=500)
    return {"module": module, "net": module.net, "task_a": loader, "task_b": loader, "loader": loader}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_can_be_followed_from_top_to_bottom(page, shell, tmp_path):
    follow(page, shell, tmp_path)


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("clbench train lam=1", "clbench.train:cli lam=1"),
        ("python -m clbench train -m seed=0,1", "clbench.train:cli -m seed=0,1"),
        ("python -m clbench.train lam=1", "clbench.train:cli lam=1"),
        ("clbench-train lam=1", "clbench.train:cli lam=1"),
        ("clbench report a", "clbench.report.__main__:cli a"),
        ("python -m clbench.report a", "clbench.report.__main__:cli a"),
        ("clbench diff a b", "clbench.runs.diff:cli a b"),
        ("clbench new net my_net", "clbench.experiment.new:cli net my_net"),
        ("clbench --version", "clbench.__main__:cli --version"),
        ("ls clbench", "None ls clbench"),
    ],
)
def test_commands_of_clbench_are_recognised_in_all_spellings(typed, entry):
    found, arguments = entry_of(typed.split())
    assert f"{found} {' '.join(arguments)}" == entry


@pytest.mark.parametrize("exception", [*NOT_RUN, *COMPOSED, *SHORTER])
def test_an_exception_is_still_needed(exception):
    there = [c for page in PAGES for block in blocks(page) if block.language == "bash" for c in commands(block.text)]
    if exception in NOT_RUN:
        assert any(re.match(exception, command) for command in there)
    elif exception in COMPOSED:
        assert any(re.search(exception, command) for command in there)
    else:
        assert any(re.fullmatch(exception, argument) for command in there for argument in shlex.split(command))


def test_a_script_has_the_options_that_the_docs_use():
    """The options are looked up in the source, because the scripts run for hours; other tests check what they do."""
    for page in PAGES:
        for script, arguments in re.findall(r"python (scripts/\w+\.py)([^`\n|#]*)", page.read_text(encoding="utf-8")):
            source = (ROOT / script).read_text(encoding="utf-8")
            for option in re.findall(r"--[\w-]+", arguments):
                assert f'"{option}"' in source, f"{page.name}: {script} has no {option}"


def test_the_citation_of_the_docs_is_that_of_the_project():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    page = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    for key, field in {
        "title": r'"(.+)"',
        "version": "(.+)",
        "date-released": r"(\d{4})-",
        "repository-code": "(.+)",
    }.items():
        value = re.search(rf"^{key}: {field}", citation, re.MULTILINE)
        assert value is not None and f"{{{value[1]}}}" in page, key
