"""The command ``clbench``: its subcommands, version, errors, and the skeletons of ``clbench new``."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import clbench
from clbench.__main__ import COMMANDS
from clbench.errors import ConfigError
from clbench.experiment.new import KINDS, VALUES, command_of, main, write

CLBENCH = str(Path(sys.executable).with_name("clbench"))
TINY = ("steps=2", "data.tasks=2", "net.hidden=[8]", "trainer=cpu", "logger=none")
HEAVY = ("torch", "lightning", "hydra", "omegaconf", "numpy", "pandas", "rich", "matplotlib")


def typed(*words, folder, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("argument", ["--help", "--version", "reprot"])
def test_the_command_imports_nothing_heavy_at_first(tmp_path, argument):
    """It imports no heavy package before the subcommand is known."""
    program = (
        f"import runpy, sys; sys.argv = ['clbench', {argument!r}]\n"
        "try: runpy.run_module('clbench', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print(end)\n"
        f"print('IMPORTED', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = typed(sys.executable, "-c", program, folder=tmp_path)
    assert "IMPORTED []" in done.stdout, done.stdout + done.stderr


def test_the_command_prints_its_help_and_its_version(tmp_path):
    for line in ([CLBENCH], [CLBENCH, "--help"], [sys.executable, "-m", "clbench", "--help"]):
        done = typed(*line, folder=tmp_path)
        assert done.returncode == 0 and all(f"clbench {name} " in done.stdout for name in COMMANDS), done.stderr
    for line in ([CLBENCH], [sys.executable, "-m", "clbench"], [CLBENCH, "train"], [f"{CLBENCH}-train"]):
        assert typed(*line, "--version", folder=tmp_path).stdout == f"clbench {version('clbench')}\n"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["reprot"], "Did you mean clbench report?"),
        (["strategy=ewc"], "Try clbench train strategy=ewc ..."),
        (["-m", "seed=0,1"], "Try clbench train -m ..."),
        (["xyz"], "Try clbench --help."),
    ],
)
def test_a_part_that_does_not_exist_is_an_error_with_a_remedy(tmp_path, words, remedy):
    done = typed(CLBENCH, *words, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: clbench {words[0]}: expected one of {', '.join(COMMANDS)}. {remedy}\n"


@pytest.mark.parametrize("name", ["report", "diff", "new"])
def test_the_usage_of_a_subcommand_names_it(tmp_path, name):
    assert typed(CLBENCH, name, "--help", folder=tmp_path).stdout.startswith(f"usage: clbench {name} ")


@pytest.mark.slow
def test_every_part_of_the_command_is_its_module(command, tmp_path):
    done = typed(CLBENCH, "train", *TINY, "samples=5", "output_dir=a", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert command(*TINY, "samples=5", "output_dir=b").returncode == 0
    done = typed(CLBENCH, "diff", "a", "b", folder=tmp_path)
    assert done.returncode == 0 and "bit-identical" in done.stdout
    done = typed(CLBENCH, "report", ".", "--output", "page", folder=tmp_path)
    assert done.returncode == 0 and (tmp_path / "page/report.html").exists(), done.stderr
    done = typed(CLBENCH, "new", "net", "ewc net", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.endswith("Try ewc_net.\n")
    done = typed(CLBENCH, "train", "lam=-1", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: lam=-1")


@pytest.mark.slow
def test_the_command_starts_runs_in_several_processes(tmp_path):
    """A parallel sweep and a run on two processes start as they do with ``python -m clbench.train``."""
    sweep = ("-m", "seed=0,1", *TINY, "samples=5", "launch=joblib", "hydra.launcher.n_jobs=2", "output_dir=sweep")
    done = typed(CLBENCH, "train", *sweep, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("sweep/*/metrics.json"))) == 2
    two = ("data.tasks=2", "epochs=1", "net.hidden=[8]", "batch_size=34", "trainer=ddp", "threads=1", "samples=20")
    done = typed(CLBENCH, "train", *two, "output_dir=two", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two/metrics.json").read_text(encoding="utf-8"))["status"] == "complete"


# --- clbench new --------------------------------------------------------------------------------------------------------


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """Make modules in ``tmp_path`` importable during the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in ("mine", "first_lost"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["strategy", "net", "data"])
def test_a_skeleton_runs_by_the_command_that_is_printed(command, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    main([kind, "my_own", "--folder", "it is mine"])
    *wrote, last = capsys.readouterr().out.splitlines()
    assert wrote == ["wrote it is mine/my_own.py", f"wrote it is mine/more/{kind}/my_own.yaml"]
    path, *clbench_train = shlex.split(last.removeprefix("run it with: "))
    assert clbench_train[:2] == ["clbench", "train"]
    small = [option for option in TINY if kind != "net" or "hidden" not in option]
    environment = dict([path.split("=")])
    done = command(*clbench_train[2:], *small, "output_dir=run", environment=environment)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["status"] == "complete" and metrics[kind]["name"] == "my_own"


def test_the_strategy_skeleton_gives_the_results_of_ewc(tmp_path, importable):
    """It has the options of EWC, and another value of its own option changes the results."""
    write("strategy", "mine", tmp_path)
    options = ["lam=1e4", "samples=20", *TINY]
    ewc = clbench.run(["strategy=ewc", *options], tmp_path / "ewc", quiet=True)
    mine, changed = (
        clbench.run(
            ["strategy=mine", *options, f"strategy.share={share}"],
            tmp_path / f"{share}",
            config_dir=tmp_path / "more",
            quiet=True,
        )
        for share in (1.0, 0.01)
    )
    assert mine["accuracy_matrix"] == ewc["accuracy_matrix"]
    assert mine["importance"] == ewc["importance"] != changed["importance"]
    assert mine["strategy"].keys() == ewc["strategy"].keys() | {"share"}
    with pytest.raises(ConfigError, match="gamma=1: strategy=mine has no option gamma"):
        clbench.run(["strategy=mine", "gamma=1"], tmp_path / "c", config_dir=tmp_path / "more")


def test_the_metric_skeleton_is_a_metric_of_a_run(tmp_path, importable):
    write("metric", "first_lost", tmp_path)
    metrics = clbench.run([*TINY, "samples=5", "metrics.extra=[first_lost.first_lost]"], tmp_path / "a", quiet=True)
    r = metrics["accuracy_matrix"]
    assert metrics["first_lost"] == pytest.approx(r[0][0] - r[1][0])
    one = clbench.run(["data.tasks=1", *TINY[:1], "metrics.extra=[first_lost.first_lost]"], tmp_path / "b", quiet=True)
    assert one["first_lost"] is None
    line = command_of("metric", "first_lost", Path())
    assert line == "PYTHONPATH=. clbench train 'metrics.extra=[first_lost.first_lost]'"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("strategy", "my-ewc", "NAME=my-ewc: expected a Python name in lower case.* Try my_ewc."),
        ("strategy", "Mine", "Try mine."),
        ("strategy", "class", "expected a Python name in lower case, such as my_strategy"),
        ("strategy", "ewc", "clbench already has strategy=ewc. Try my_ewc."),
        ("net", "torch", "Python already has a module torch. Try my_torch."),
        ("data", "taken", "taken.py: expected a new file, but it exists"),
        *(
            (kind, name, f"NAME={name}: expected a Python name in lower case")
            for kind in ("net", "data")
            for name in VALUES
        ),
        ("net", "été", "NAME=été: expected a Python name in lower case"),
        ("net", "__init__", "NAME=__init__: expected a Python name in lower case"),
        ("metric", "forgetting", "clbench already has a metric or column forgetting. Try my_forgetting."),
        ("metric", "seconds", "clbench already has a metric or column seconds"),
    ],
)
def test_an_unusable_name_is_refused_and_nothing_is_written(tmp_path, kind, name, message):
    (tmp_path / "taken.py").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        write(kind, name, tmp_path)
    assert [(file.name, file.read_text(encoding="utf-8")) for file in tmp_path.rglob("*")] == [("taken.py", "mine")]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="file: expected a writable folder"):
        write("net", "mine", tmp_path / "file")


def test_no_file_is_written_if_one_of_them_exists(tmp_path):
    write("net", "mine", tmp_path)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ConfigError, match="more/net/mine.yaml: expected a new file, but it exists"):
        write("net", "mine", tmp_path)
    assert not (tmp_path / "mine.py").exists()


def test_every_kind_has_a_skeleton():
    folder = Path(clbench.__file__).parent / "experiment/skeletons"
    assert {file.name.partition(".")[0] for file in folder.iterdir()} == set(KINDS)


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", clbench.__all__)
def test_no_public_name_is_also_a_module_or_folder(name):
    assert find_spec(f"clbench.{name}") is None
    assert getattr(clbench, name).__name__ == name
