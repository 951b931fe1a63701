"""Names and texts with characters that have a meaning in HTML, LaTeX, CSV, figures or the terminal."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from clbench.report.__main__ import main
from clbench.runs.names import printable
from clbench.runs.read import read
from tests.make_finished_runs import FINISHED_RUNS

RUN = sorted((FINISHED_RUNS / "task_incremental").glob("ewc-seed0-*"))[0]

NAMES = (
    *("=1+1", "+1", "-1", "@sum", "\tx", "\r=x", "\n=x", "=HYPERLINK('x')"),
    *("$\\frac$", "a$b", "[bold]x[/bold]", "[/x]", "a\\", ":smile:", "<img src=x>&\"'", "%_#~^{}\\"),
    *("\x1b[31mred", "\0", "two\nlines", "\ud800", "_hidden", " ", "", "é²\u202e", "long" * 60),
)
"""Names of strategies, which a user may choose freely, because a strategy is named after its yaml file."""


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """Return a folder with two seeds of a run for each name."""
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(NAMES):
        for seed in (0, 1):
            run = Path(shutil.copytree(RUN, folder / f"{number}_{seed}"))
            content = json.loads((run / "config.json").read_text(encoding="utf-8"))
            content["choices"]["strategy"] = name
            content["config"]["seed"] = seed
            content["config"]["net"]["activation"] = "=$x$[/y]\n"
            (run / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_report_shows_runs_with_odd_names(odd, tmp_path, capsys):
    output = main([str(odd), "--output", str(tmp_path / "out"), "--title", "\udc80"])
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out and "[/x]" in out and ":smile:" in out
    assert set(read(odd).strategy) == {printable(name) for name in NAMES}
    with (output / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(NAMES)
    for row in rows:
        for column in ("benchmark", "method", "strategy", "fisher", "samples"):
            assert not row[column].startswith(("=", "+", "-", "@", "\t", "\r", "\n")), row[column]
        assert float(row["average_accuracy"]) > 0  # numbers are not quoted
    text = (output / "summary.tex").read_text(encoding="utf-8")
    assert sum(line.endswith(r"\\") for line in text.splitlines()) == len(NAMES) + 1
    assert "<img src=x>" not in (output / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name != "posix", reason="names of files are texts")
def test_a_folder_with_an_odd_name_is_printed_in_one_line(tmp_path, capsys):
    names = [b"\xff", b"two\nlines", "é²".encode(), b"[/x]", b"<b>", b"\x1b[31m"]
    for name in names:
        shutil.copytree(os.fsencode(RUN), os.path.join(os.fsencode(tmp_path), name))  # noqa: PTH118
    output = main([str(tmp_path), "--output", str(tmp_path / "out")])
    end = "(same configuration and seed as an earlier run, so it is not counted)"
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 5 and all(line.endswith(end) for line in skipped)
    assert "\\udcff" in (output / "report.html").read_text(encoding="utf-8")
