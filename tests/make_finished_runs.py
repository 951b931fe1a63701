"""Write tests/finished_runs/, the run folders for the tests of reports: ``python -m tests.make_finished_runs``.

Rerun it when the format of a run folder or the name of an option changes, and commit the files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FINISHED_RUNS = Path(__file__).parent / "finished_runs"

SWEEPS = {
    "task_incremental": (
        "strategy=finetune,ewc,joint_from_scratch",
        "lam=1,1e3",
        "fisher=exact,empirical",
        "seed=0,1,2,3,4",
        "data.tasks=2",
        "data.examples_per_task=200",
        "epochs=10",
    ),
    "class_incremental": (
        "strategy=finetune,ewc,joint_from_scratch",
        "data=split_digits",
        "scenario=class",
        "epochs=1",
    ),
}
"""Options of each sweep by name."""

SMALL = ("net.hidden=[16]", "trainer=cpu", "logger=none", "checkpoints=none", "output_dir=sweep")
"""Options of all sweeps."""

FILES = ("metrics.json", "accuracy_matrix.csv", "config.json")


def main() -> None:
    """Train the sweeps in a temporary folder and copy the files that reports read to tests/finished_runs/."""
    with TemporaryDirectory() as temporary:
        for name, options in SWEEPS.items():
            folder = Path(temporary) / name
            folder.mkdir()
            train(options, folder)
            copy_sweep(folder / "sweep", Path(temporary) / "finished_runs" / name)
        shutil.rmtree(FINISHED_RUNS, ignore_errors=True)
        shutil.copytree(Path(temporary) / "finished_runs", FINISHED_RUNS)
    size = sum(file.stat().st_size for file in FINISHED_RUNS.rglob("*") if file.is_file())
    print(f"{len(list(FINISHED_RUNS.glob('*/*/metrics.json')))} runs, {size / 1000:.0f} kB in {FINISHED_RUNS}")


def train(options: tuple[str, ...], folder: Path) -> None:
    """Run a sweep in ``folder``/sweep."""
    command = [sys.executable, "-m", "clbench.train", "-m", *options, *SMALL]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)


def copy_sweep(sweep: Path, to: Path) -> None:
    """Copy the text files of the runs and the sweep, without paths and names of this machine."""
    for metrics in sorted(sweep.glob("*/metrics.json")):
        run, copy = metrics.parent, to / metrics.parent.name
        copy.mkdir(parents=True)
        for name in FILES:
            shutil.copy(run / name, copy / name)
        edit(copy / "metrics.json", machine={"device": "cpu", "system": "Linux"})
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]
        edit(copy / "config.json", config={**config, "data_dir": "data", "output_dir": "runs"})
    shutil.copy(sweep / "sweep.json", to)


def edit(file: Path, **values: Any) -> None:
    """Replace ``values`` in a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **values}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
