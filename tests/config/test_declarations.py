"""The yaml files, the Python arguments, --help and docs/options.md declare the same options."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from clbench.config.arguments import NOT_ARGUMENTS, arguments_of, target_of
from clbench.config.declarations import ConfigFile, declarations, files, find, top_level_options
from clbench.config.help import GROUPS, help_lines
from clbench.config.options import OPTIONS, conf_dir
from clbench.config.values import RULES, fits
from clbench.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for group in (*GROUPS, "launch") for file in files(group)]

DIFFERENT = {
    ("strategy=si", "lam"): "a value for the default data; lam=1 is the penalty of the paper",
    ("strategy=l2", "lam"): "a value for the default data",
    ("strategy=imm_mean", "weighting"): "one of the three methods of the class",
    ("strategy=fisher_merging", "start"): "one of the three methods of the class",
    ("net=mlp_bn", "hidden"): "the net of an experiment, with BatchNorm",
    ("net=mlp_bn", "batch_norm"): "the net of an experiment, with BatchNorm",
}
"""Default of a yaml that differs from that of the Python argument -> the reason."""

PRESETS = ("data", "scenario")
"""Groups whose files are special cases. Their keys are not defaults of the class; the keys of the base file are."""


def value_of(file: ConfigFile) -> Any:
    return yaml.safe_load(file.path.read_text(encoding="utf-8")) or {}


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if key in NOT_ARGUMENTS or key == "defaults" or (name == "hydra" and "launcher" not in value):
            continue
        found |= leaves(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.choice)
def test_every_option_of_a_yaml_has_a_declaration(file):
    """The declaration has the default value and the meaning of the option."""
    top, found = top_level_options(), declarations(file)
    prefix = f"{file.package}." if file.package else ""
    for key, value in leaves(value_of(file), prefix).items():
        is_reference = isinstance(value, str) and value.startswith("${") and "submitit" not in value
        if (is_reference and "." in key) or value == {}:
            assert key not in found or "submitit" in str(value)
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):  # a list of data sets
            continue
        if key.startswith("hydra.launcher.ray."):
            key = ".".join(key.split(".")[:4])
            assert found[key].meaning
            continue
        assert yaml.safe_load(found[key].default) == value, key
        assert found[key].meaning or top[key].meaning, f"{file.path}: {key} has no comment with its meaning"


def test_every_option_of_a_run_has_a_declaration():
    """The declaration has the meaning of the option, in the order of train.yaml."""
    top = top_level_options()
    written = leaves(yaml.safe_load((conf_dir() / "train.yaml").read_text(encoding="utf-8")))
    assert list(top) == [key for key in written if not key.startswith("hydra")]
    assert all(d.meaning for d in top.values())
    assert {key for key in RULES if "." not in key} | set(OPTIONS) <= set(top)


def test_every_integer_and_flag_has_a_rule_its_default_obeys():
    values = OmegaConf.load(conf_dir() / "train.yaml")
    for key in top_level_options():
        if (
            "${" not in top_level_options()[key].default
            and isinstance(OmegaConf.select(values, key), int)
            and key not in OPTIONS
            and key not in ("lr",)
        ):
            assert key in RULES, key
    for key, rule in RULES.items():
        if "." not in key:
            assert fits(values[key], rule), key


@pytest.mark.parametrize("group", GROUPS)
def test_yaml_defaults_equal_the_defaults_of_python_arguments(composed, group):
    seen = set()
    for file in files(group):
        cfg = composed(file.choice)
        own = set(leaves(value_of(file))) if group in PRESETS else set()
        for node in (OmegaConf.select(cfg, group), *nested(OmegaConf.select(cfg, group))):
            target = target_of(node)
            takes = None if target is None else arguments_of(target)
            if takes is None or not getattr(target, "__module__", "").startswith("clbench."):
                continue
            for name, parameter in takes.items():
                if (
                    name not in node
                    or parameter.default is inspect.Parameter.empty
                    or name in {k.rpartition(".")[2] for k in own}
                ):
                    continue
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                if plain(node[name]) != default:
                    seen.add((file.choice, name))
                    assert (file.choice, name) in DIFFERENT, f"{file.choice}: {name}={node[name]}, in Python {default}"
    assert seen == {pair for pair in DIFFERENT if pair[0].startswith(f"{group}=")}, (
        "these are equal now: remove them from DIFFERENT"
    )


def nested(node: Any) -> list[DictConfig]:
    inner = list(node.values()) if isinstance(node, DictConfig) else list(node) if isinstance(node, ListConfig) else []
    inner = [value for value in inner if isinstance(value, DictConfig | ListConfig)]
    return [found for value in inner for found in (value, *nested(value)) if isinstance(found, DictConfig)]


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


# --- docs/options.md -----------------------------------------------------------------------------------------------------


@pytest.fixture
def write_options(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import write_options

    return write_options


def test_the_page_of_options_is_up_to_date(write_options):
    assert write_options.PAGE.read_text(encoding="utf-8") == write_options.page(), "run python scripts/write_options.py"


def test_every_yaml_is_on_the_page_of_options(write_options):
    page = write_options.PAGE.read_text(encoding="utf-8")
    for path in conf_dir().glob("**/*.yaml"):
        group = path.parent.relative_to(conf_dir()).as_posix()
        if group in (".", "data/base", "hydra/sweeper", "study"):  # on other pages, or in other sections of this one
            continue
        assert f"`{group}={path.stem}`" in page or f"### {group}={path.stem}\n" in page, path


# --- --help --------------------------------------------------------------------------------------------------------------


def test_help_shows_every_option_with_value_and_meaning():
    """The options shown are those of the chosen strategy, net and data."""
    lines = list(help_lines(["strategy=mas", "lam=3", "net.hidden=[8, 8]", "-m", "--help"]))
    shown = {line.split()[0].partition("=")[0]: line for line in lines if line.startswith("  ") and "=" in line}
    for file in files("strategy"):
        for key, declaration in declarations(file).items():
            if file.path.stem == "mas" and key.startswith("strategy."):
                assert shown[key].endswith(declaration.meaning), key
            elif key.startswith("strategy.") and f"  {key}=" in "\n".join(lines):
                assert key in declarations(find("strategy", "mas", [conf_dir()])), key
    for key, declaration in top_level_options().items():
        if key not in OPTIONS or key in ("lam", "samples", "fisher_batch"):
            assert shown[key].endswith(declaration.meaning), key
    assert shown["lam"].split()[0] == "lam=3"
    assert shown["net.hidden"].split()[0] == "net.hidden=[8,8]"
    assert any(line.split() == ["scenario:", "class,", "domain,", "task"] for line in lines)


def test_help_refuses_a_missing_folder(tmp_path):
    with pytest.raises(ConfigError, match="--config-dir=.*nosuch: expected a folder with configuration groups"):
        list(help_lines(["--config-dir", str(tmp_path / "nosuch"), "--help"]))


@pytest.mark.parametrize("name", ["more", "a (x)", "a'b", "a,b", "a=b", "a b"])
def test_help_shows_inherited_options_of_a_user_strategy(tmp_path, name):
    """A strategy from the user's own folder is shown with the options that it inherits."""
    folder = tmp_path / name
    (folder / "strategy").mkdir(parents=True)
    (folder / "strategy/mine.yaml").write_text(
        "# @package _global_\n# my own\ndefaults:\n  - /strategy/ewc@_global_\n  - _self_\nlam: 5\n"
        "strategy:\n  _target_: mine.Mine\n  extra: 1  # what it adds\n",
        encoding="utf-8",
    )
    lines = list(help_lines(["--config-dir", str(folder), "strategy=mine", "--help"]))
    assert "strategy=mine: my own" in lines
    assert [line.split() for line in lines if "strategy.extra" in line] == [["strategy.extra=1", "what", "it", "adds"]]
    assert any(line.startswith("  lam=5 ") and "strength of the penalty" in line for line in lines)
    assert any(line.startswith("  strategy.chunk=null ") for line in lines)
    assert any(line.startswith("  strategy:") and line.endswith(", mine") for line in lines)


def test_help_imports_no_torch():
    program = (
        "import sys; from clbench.config.help import print_help; print_help(['--help'])\n"
        "print('IMPORTED', [m for m in ('torch', 'lightning', 'clbench.strategies') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("IMPORTED []\n"), done.stdout + done.stderr
