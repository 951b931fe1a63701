"""The list of what ``clbench.load`` may call when it rebuilds a run, and the check of a configuration against it.

A folder from somebody else names the functions and classes to call. Each name is compared with the list before anything is
imported, because importing a module executes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate

from clbench.errors import ConfigError

FUNCTIONS = {
    *(f"clbench.data.{name}" for name in ("chain", "permute", "rotate", "split")),
    *(f"clbench.data.{name}" for name in ("csv_files", "digit_masks", "image_folders", "text_domains", "text_folders")),
    *(f"clbench.nets.{name}" for name in ("cnn", "fcn", "flatten_pixels", "gpt_small", "hf_model", "mlp")),
    *(
        f"clbench.nets.{name}"
        for name in ("module_body", "resnet18_reduced", "resnet18_vandeven", "timm_model", "torchvision_model")
    ),
    *(f"clbench.training.loggers.{name}" for name in ("csv", "tensorboard", "wandb")),
    "lightning.Trainer",
}
"""Allowed functions, and allowed classes outside ``CLASSES``."""

CLASSES = {
    **dict.fromkeys(("clbench.data", "clbench.nets", "clbench.strategies", "clbench.learner"), ("builtins.object",)),
    "clbench.training.monitor": ("builtins.object",),
    "lightning.pytorch.callbacks": ("lightning.Callback",),
    "torch.nn": ("torch.nn.Module",),
    "torch.optim": ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    "torchvision.datasets": ("torchvision.datasets.VisionDataset",),
    "torchvision.ops": ("torch.nn.Module",),
    "torchvision.transforms": ("builtins.object",),
}
"""Package -> base classes. Allowed are the classes that the package defines and that have one of these bases."""

MODELS = "torchvision.models"
"""Package whose classification models are allowed, without a download."""

DATASETS = "torchvision.datasets"
"""Package whose classes open files, which is allowed in the data folder."""

OPENERS = (
    *(f"clbench.data.{name}" for name in ("csv_files", "image_folders", "text_folders")),
    *(f"clbench.data.{name}" for name in ("folders", "text")),
)
"""Functions, and modules of classes, that open files, which is allowed in the data folder."""

PATHS = ("root", "folder", "folders", "files")
"""Arguments that name files or folders."""

PUBLISHED = {"clbench.nets.timm_model": "pretrained", "clbench.nets.torchvision_model": "weights"}
"""Functions that download only the published weights of timm or torchvision -> the argument that starts it."""

ANY_MODEL = "clbench.nets.hf_model"
"""Function whose argument ``name`` opens a folder, or downloads a model that anyone may have published."""

KERNELS = "_implementation"
"""Part of the names of options of transformers (``attn_implementation``) that can download code, also in nested options."""

DOWNLOADS = ("download", "pretrained", "weights", "weights_backbone")
"""Arguments that start a download."""

FILES = ("cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments of timm that name files, folders or addresses."""

LOOKUPS = [f"hydra.utils.{name}" for name in ("get_class", "get_method", "get_object", "get_static_method")]
"""Functions that return the object which their argument ``path`` names."""


def check_trust(config: Mapping[str, Any], file: Path, data_dir: str, trust: Sequence[str] = ()) -> None:
    """Check that a configuration names only functions and classes that cannot execute code of its author.

    Args:
        config: The configuration in plain values.
        file: File of the configuration, for messages.
        data_dir: The only folder in which data sets may open files.
        trust: Modules or full names of functions and classes that are allowed as well: ``["my_module", "timm.create_model"]``.

    Raises:
        ConfigError: A name or one of its arguments is not allowed, or ``trust`` is not a list of names.
    """
    if isinstance(trust, str) or not all(isinstance(name, str) and name for name in trust):
        raise ConfigError(f'trust={trust!r}: expected a list of modules or full names. Try trust=["my_module"].')
    for key, name, node in _names(config):
        if not isinstance(name, str):
            raise ConfigError(f"{file}: {key}={name}: expected the name of a class or function. Restore the file.")
        if _is_below(name, trust):
            continue
        wrong = _wrong_argument(name, node, data_dir) if _is_allowed(name) else f"{key}={name!r} could run code"
        if wrong is not None:
            raise ConfigError(
                f"{file}: {wrong}, which clbench.load does not allow in a folder from somebody else. If you trust its author, "
                f"try clbench.load(..., trust={[name]})."
            )


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield the key, the name and the arguments of each function or class that ``config`` names."""
    for key, node in _mappings(config):
        if node.get("_target_") in LOOKUPS and "_args_" not in node:
            yield f"{key}.path", node.get("path"), node
        elif "_target_" in node:
            yield f"{key}._target_", node["_target_"], node
    metrics = config.get("metrics")
    extra = metrics.get("extra") if isinstance(metrics, Mapping) else None
    for name in extra if isinstance(extra, list) else []:
        yield "metrics.extra", str(name).replace(":", "."), {}  # module:function is allowed too


def _mappings(value: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted keys and values of all mappings in ``value``, also of those in lists."""
    if isinstance(value, Mapping):
        yield key, value
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(inner, Mapping | list):
            yield from _mappings(inner, f"{key}.{name}" if key else str(name))


def _is_below(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_allowed(name: str) -> bool:
    """Return whether ``name`` is on the list. No other packages than those of the list are imported."""
    if name in FUNCTIONS:
        return True
    if _is_below(name, [MODELS]):
        from torchvision import models  # imported only if used, because the import is slow

        return name.removeprefix(f"{MODELS}.") in models.list_models(module=models)
    package = next((package for package in CLASSES if _is_below(name, [package])), None)
    if package is None:
        return False
    try:
        found = _locate(name)
    except (ImportError, AttributeError, ValueError):  # there is nothing of this name that could be called
        return True
    bases = tuple(_locate(base) for base in CLASSES[package])
    return isinstance(found, type) and issubclass(found, bases) and _is_below(found.__module__, [package])


def _wrong_argument(name: str, node: Mapping[str, Any], data_dir: str) -> str | None:
    """Return the argument of ``node``, which calls ``name``, that is not allowed; None if all are allowed."""
    if _is_below(name, [MODELS, DATASETS, ANY_MODEL, *OPENERS]) and node.get("_args_"):
        return f"{name} with _args_"
    for key, value in node.items():
        if value and _is_wrong(name, key, str(value)):
            return f"{name} with {key}={value}"
        for text in value if isinstance(value, list) else [value]:
            opens = key in PATHS or (_is_below(name, [DATASETS]) and os.sep in str(text))
            is_path = isinstance(text, str) and opens
            if is_path and (".." in Path(text).parts or not Path(text).is_relative_to(data_dir)):
                return f"{name} with {key}={text}, a path outside the data folder {data_dir}"
    return None


def _is_wrong(name: str, key: str, value: str) -> bool:
    """Return whether the argument ``key=value`` of ``name`` opens files or downloads what is not published by a known package."""
    if name == ANY_MODEL:
        return key == "name" or KERNELS in value
    return key in (*DOWNLOADS, *FILES) and PUBLISHED.get(name) != key
