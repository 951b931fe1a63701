"""Write and read one checkpoint of a run. Damaged and foreign files are refused before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from clbench.config.hashing import SCHEMA
from clbench.errors import ConfigError
from clbench.nets.torch_file import read_file, write_file
from clbench.runs.json_files import ANYTHING, COUNT, NUMBER, TEXT, Leaf, Shape, mismatch

UNFIT = (RuntimeError, LookupError, TypeError, ValueError, AttributeError)
"""What load_state_dict raises for the state of another net, optimizer or strategy."""

TASK: Shape = {
    **{"task": COUNT, "step": COUNT, "learner": {}, "optimizer?": {"state": {}}, "strategy": {}},
    "evaluation": {"matrices?": {}, "counts?": {}, "per_task": [ANYTHING], "within": [ANYTHING]},
    **{"monitor": {}, "seconds": {"*": NUMBER}, "importance": [{"*": NUMBER}], "partial?": [TEXT]},
    **{"shared_first_task?": TEXT, "fingerprint?": {"*": TEXT}},
}
"""Shape of a task checkpoint. Older versions did not write the keys ``partial`` and ``fingerprint``, and wrote ``counts``
(correct answers and examples) instead of ``matrices``.
"""

MID_TASK: Shape = {
    **{"epoch": COUNT, "global_step": COUNT, "state_dict": {}, "loops": {"fit_loop": {}}},
    "callbacks": Leaf("a mapping with keys", lambda value: isinstance(value, dict) and len(value) > 0),
    **{"optimizer_states": [{"state": {}}], "lr_schedulers": [{}]},
    "run": {
        "random": {"python": ANYTHING, "numpy": [ANYTHING], "torch": ANYTHING},
        **{"seconds": {"*": NUMBER}, "task?": COUNT, "shared_first_task?": TEXT, "fingerprint?": {"*": TEXT}},
    },
}
"""Shape of a mid-task checkpoint, which Lightning writes."""

REASON = 200  # letters of an error that are shown, because torch lists every tensor that does not fit


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writer of Lightning checkpoints that renames a finished file in the same folder, so that none is half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        write_file(Path(path), checkpoint)


def read_checkpoint(path: Path, remedy: str, key: str | None = None, mmap: bool = False) -> dict[str, Any]:
    """Return the checkpoint at ``path``, on the CPU, after its checksums have been verified.

    Args:
        path: The file.
        remedy: What the user can do, as the last sentence of the error.
        key: Key of the part with the schema and the config hash, None if they are not in a part.
        mmap: Whether tensors are read when they are used.

    Raises:
        ConfigError: The file is damaged, is no checkpoint of clbench, lacks a part, or has another schema.
    """
    state = read_file(path, remedy, mmap=mmap)
    about = state.get(key) if key is not None and isinstance(state, dict) else state
    if not isinstance(about, dict) or "config_hash" not in about:
        raise ConfigError(f"{path}: expected a checkpoint of clbench, found other tensors or values. {remedy}")
    if about.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path}: expected schema {SCHEMA}, got schema {about.get('schema', 'unknown')} of another version of clbench. Try "
            "the version that wrote it."
        )
    if (problem := mismatch(state, TASK if key is None else MID_TASK)) is not None:
        raise ConfigError(f"{path}: expected a checkpoint of clbench ({problem}). {remedy}")
    return dict(state)


@contextmanager
def refuse_unfit_state(path: Path) -> Iterator[None]:
    """Convert an error while the checkpoint at ``path`` is loaded into the net and the strategy to ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except UNFIT as error:
        raise ConfigError(unfit_message(path, error)) from error


def unfit_message(path: Path, error: BaseException) -> str:
    """Return the message for a checkpoint that does not fit the net or the strategy."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{path}: the checkpoint does not fit the net, the optimizer or the strategy of this run ({reason[:REASON]}). Their code "
        "has changed since it was written. Restore the code, or try another output_dir."
    )


def is_raised_while_loading(error: BaseException) -> bool:
    """Return whether Lightning raised ``error`` while it loaded a checkpoint."""
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if Path(code.co_filename).name == "checkpoint_connector.py" and code.co_name.lstrip("_").startswith("restore"):
            return True
        traceback = traceback.tb_next
    return False
