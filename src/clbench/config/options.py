"""Options of a run: those of the strategy, their allowed values, and the errors for invalid ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from clbench.config.arguments import TOP_LEVEL, arguments_of, connections, target_of
from clbench.errors import ConfigError, expected

OPTIONS = ("lam", "gamma", "fisher", "samples", "fisher_batch", "memory")
"""Top-level options of strategies. ``options_of`` returns those of a given strategy."""

ELSEWHERE = (
    *("output_dir", "data_dir", "checkpoints", "objective", "threads", "logger", "log_every", "dry_run"),
    *("save_every", "share_first_task", "stop_after_task", "select_lam_on_first_tasks", "metrics"),
)
"""Options that do not affect the results, such as folders and logging. They are not part of the config hash."""


def conf_dir() -> Path:
    """Return the folder of the yaml files: in the installed package, or next to src/ in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def run_folder(output_dir: Any) -> str:
    """Return the path in ``output_dir`` with ``~`` expanded.

    Raises:
        ConfigError: It is not a path.
    """
    if not isinstance(output_dir, str | int | float) or isinstance(output_dir, bool) or not str(output_dir).strip():
        shown = "null" if output_dir is None else output_dir
        raise ConfigError(
            f"output_dir={shown}: expected the path of a folder. Try output_dir=runs/a, or remove this option."
        )
    return str(Path(str(output_dir)).expanduser())


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def options_of(cfg: DictConfig) -> list[str]:
    """Return the top-level options of the strategy: those that an argument of its class depends on (``connections``)."""
    connected = connections(cfg, "strategy", OPTIONS)
    target = target_of(cfg.strategy)
    takes = None if target is None else arguments_of(target)
    used = set().union(*(names for argument, names in connected.items() if takes is None or argument in takes))
    return [name for name in OPTIONS if name in used]


def foreign_options(cfg: DictConfig) -> dict[str, Any]:
    """Return the options that are set but that the strategy does not have, with their values."""
    has = options_of(cfg)
    return {name: cfg[name] for name in OPTIONS if name not in has and cfg[name] is not None}


def refuse_foreign_options(cfg: DictConfig, strategy: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError if an override sets an option that the strategy does not have.

    Those that a data preset or an experiment sets are allowed, because it also serves other strategies.
    """
    typed = {override.partition("=")[0].removeprefix("strategy.") for override in overrides}
    for name in foreign_options(cfg):
        if name in typed:
            raise ConfigError(foreign_option_message(cfg, strategy, name))


def foreign_option_message(cfg: DictConfig, strategy: str, name: str) -> str:
    """Return the message for the option ``name``, which is set but which the strategy does not have."""
    value, others = cfg[name], strategies_with(name)
    if name not in cfg.strategy:
        target = target_of(cfg.strategy)
        takes = None if target is None else arguments_of(target)
        if target is not None and (takes is None or name in takes):
            return (
                f"{name}={value}: the yaml of strategy={strategy} does not pass this option to its class. Add the line "
                f"{name}: ${{{name}}} to it."
            )
        return (
            f"{name}={value}: strategy={strategy} has no option {name}. Remove it, or try strategy={', '.join(others)}."
        )
    argument = cfg.strategy[name]
    if strategy in others:
        return f"strategy.{name}={argument}: this option is named {name}. Try {name}={argument}."
    return (
        f"{name}={value}: strategy={strategy} reads strategy.{name} ({argument}) instead. Try strategy.{name}={value}."
    )


def refuse_other_names(cfg: DictConfig) -> None:
    """Raise ConfigError if a key is set that another option overrides."""
    for key, name in TOP_LEVEL.items():
        if (value := OmegaConf.select(cfg, key)) is not None:
            raise ConfigError(f"{key}={value}: this option is named {name}. Try {name}={value}.")
    length = cfg.scheduler.get("length")
    if cfg.scheduler.make is not None and length in cfg.scheduler.make:
        raise ConfigError(
            f"scheduler.make.{length}={cfg.scheduler.make[length]}: scheduler.length={length} sets this argument to the number "
            "of steps of a task. Try scheduler.length=null to set it yourself."
        )
    make = cfg.optimizer.make
    if cfg.lr is not None and "lr" not in connections(cfg, "optimizer.make", ["lr"]).get("lr", ()):
        value = make.get("lr")
        raise ConfigError(
            f"optimizer.make.lr={'null' if value is None else value}: expected ${{lr}}, because the option lr={cfg.lr} sets the "
            f"learning rate. Try lr={'...' if value is None else value}, or write lr: ${{lr}} in the yaml of your optimizer."
        )


def budget(cfg: DictConfig, index: int, tasks: int) -> dict[str, int]:
    """Return the training length of task ``index``, as ``max_epochs`` and ``max_steps`` of a Trainer.

    Raises:
        ConfigError: ``epochs`` or ``steps`` is a list that does not have one number per task.
    """
    name = "epochs" if cfg.steps is None else "steps"
    given = cfg[name]
    each = list(given) if isinstance(given, ListConfig) else [given] * tasks
    if len(each) != tasks:
        raise ConfigError(expected(name, given, f"one number, or a list of {tasks}, one per task"))
    return (
        {"max_epochs": each[index], "max_steps": -1}
        if name == "epochs"
        else {"max_epochs": -1, "max_steps": each[index]}
    )


def drop_foreign_options(cfg: DictConfig) -> None:
    """Set options that the strategy does not have to null, so that otherwise equal runs are recognised as one run."""
    with open_dict(cfg):
        for name in foreign_options(cfg):
            cfg[name] = None


def strategies_with(option: str) -> list[str]:
    """Return the names of the strategies in ``conf/`` that have the top-level option ``option``."""
    top = OmegaConf.load(conf_dir() / "train.yaml")
    found = []
    for file in sorted((conf_dir() / "strategy").glob("*.yaml")):
        cfg = OmegaConf.merge(top, OmegaConf.load(file))
        assert isinstance(cfg, DictConfig)
        if option in options_of(cfg):
            found.append(file.stem)
    return found
