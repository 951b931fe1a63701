"""Every notebook runs from its first cell to its last, offline, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """``execute(notebook)`` runs its cells in a kernel of its own, in ``tmp_path``."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # torchmetrics imports transformers if it is installed, whose tqdm asks a kernel for ipywidgets
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    resources = {"metadata": {"path": str(tmp_path)}}
    return lambda notebook: nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_a_notebook_runs_from_its_first_cell_to_its_last(file, execute):
    notebook = nbformat.read(file, as_version=4)
    execute(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output["text"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_without_outputs(file):
    for cell in nbformat.read(file, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_a_run_in_a_notebook_writes_its_log(execute, tmp_path):
    options = ["data.tasks=2", "steps=2", "net.hidden=[8]", "trainer=cpu", "logger=none", "samples=5"]
    code = f"import clbench\nclbench.run({options}, 'run', quiet=True)['status']"
    execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]))
    assert "task 2/2" in (tmp_path / "run/train.log").read_text(encoding="utf-8")
