"""Create the sweeper in this process, for programs that choose the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode, TaskFunction

from clbench.config.compose import hydra_state, quoted
from clbench.config.options import conf_dir

if TYPE_CHECKING:  # an import would come before that of Hydra, which loads its sweepers a second time
    from clbench.sweep.sweeper import GridSweeper


@contextmanager
def open_sweeper(overrides: Sequence[str], folder: Path, task_function: TaskFunction) -> Iterator[GridSweeper]:
    """Yield the sweeper of the command ``clbench train -m OVERRIDES``, whose runs are in ``folder``.

    Args:
        overrides: Overrides of the launcher, such as ``launch=joblib``.
        folder: Folder of the sweep.
        task_function: Function that trains a run, see ``hydra.main``.

    Raises:
        hydra.errors.HydraException: Hydra rejects an override.
    """
    with hydra_state():
        hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(conf_dir())))
        settings = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder))}"]
        config = hydra.compose_config("train", [*overrides, *settings], RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        sweeper = Plugins.instance().instantiate_sweeper(
            config=config, hydra_context=context, task_function=task_function
        )
        yield cast("GridSweeper", sweeper)
