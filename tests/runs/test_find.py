import shutil
from pathlib import Path

import pytest

from clbench.runs.find import find_runs
from tests.make_finished_runs import FINISHED_RUNS

RUN = next(FINISHED_RUNS.glob("class_incremental/ewc-*"))


@pytest.mark.parametrize("folder", [".", "../here", "./"])
def test_every_run_below_a_relative_folder_is_found_once(folder, tmp_path, monkeypatch):
    names = ["0", "1", "a", "ab", "b"]
    for name in names:
        shutil.copytree(RUN, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    assert sorted(run.name for run in find_runs([Path(folder)])) == names
    assert sorted(run.name for run in find_runs([Path(folder), tmp_path / "here", Path("a")])) == names
