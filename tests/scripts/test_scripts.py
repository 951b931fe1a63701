"""The scripts, run from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_bench_importance_has_a_row_for_every_net_and_importance(tmp_path):
    files = ["--json", str(tmp_path / "table.json"), "--markdown", str(tmp_path / "table.md")]
    done = script("bench_importance.py", "--quick", "--threads", "1", *files)
    assert done.returncode == 0, done.stderr
    kinds = ["empirical", "predicted", "sample", "exact over 2", "exact over 10", "mas"]
    cells = [(net, kind) for net in ("mlp", "cnn", "resnet18_reduced") for kind in kinds]
    rows = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [(row["net"], row["importance"]) for row in rows] == cells
    for row in rows:
        peers = {"nngeometry", "backpack", "torch.func"} - ({"nngeometry"} if row["importance"] == "mas" else set())
        assert row["ratio"].keys() - {"laplace"} == {"ours", "batch-1"} | peers
        assert max(row["deviation"].values()) < 1e-3
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert [tuple(line.strip("| ").split(" | ")[:2]) for line in lines[2:]] == cells
    for net, kind in cells:
        assert any(line.startswith(net) and kind in line for line in done.stdout.splitlines())


@pytest.mark.slow
def test_bench_importance_measures_models_of_other_libraries(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    file = tmp_path / "table.json"
    done = script(
        "bench_importance.py", "--quick", "--nets", "llama", "vit_timm", "--kinds", "mas", "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["net"] for row in rows] == ["llama", "vit_timm"]


@pytest.mark.slow
def test_measure_large_has_a_row_for_each_size():
    done = script("measure_large.py", "--sizes", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("1.0 | ")


@pytest.mark.slow
def test_bench_importance_explains_itself():
    done = script("bench_importance.py", "--help")
    assert done.returncode == 0
    assert "batch-1" in done.stdout
