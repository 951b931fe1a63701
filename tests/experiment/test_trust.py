"""A folder from somebody else executes no code of its author when it is loaded, compared or reported."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import clbench
from clbench.config.hashing import GROUPS, content_hash
from clbench.config.options import conf_dir
from clbench.errors import ConfigError
from clbench.experiment.trust import check_trust
from clbench.report.__main__ import main as report
from clbench.runs.diff import main as diff

OPTIONS = (
    "strategy=finetune",
    "data.tasks=2",
    "data.examples_per_task=64",
    "net.hidden=[4]",
    "epochs=1",
    "trainer=cpu",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trust") / "run"
    clbench.run([*OPTIONS, "logger=none"], folder, quiet=True)
    return folder


class Bomb:
    """An object whose unpickling runs a statement."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.statement,)


@pytest.fixture
def foreign(finished, tmp_path, monkeypatch) -> Path:
    """A run folder whose author added a module and a pickle. Both write the file canary.txt when they are opened."""
    folder = tmp_path / "foreign"
    shutil.copytree(finished, folder)
    statement = f"open({str(tmp_path / 'canary.txt')!r}, 'w').close()"
    (folder / "bomb.pkl").write_bytes(pickle.dumps(Bomb(statement)))
    function = "def attack(matrix=None, *args, **kwargs):\n    return 0.0\n"
    (folder / "evil_module.py").write_text(f"{statement}\n{function}", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("evil_module", None)


def change(folder: Path, key: str, value: Any) -> None:
    """Set a key of the saved configuration, with the hash that such a configuration has."""
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    cfg = OmegaConf.create(content["config"])
    OmegaConf.update(cfg, key, value, force_add=True)
    content["config"] = OmegaConf.to_container(cfg)
    content["content_hash"] = content_hash(cfg)
    file.write_text(json.dumps(content), encoding="utf-8")


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, **arguments}


READ_PICKLE = {
    "joblib": call("joblib.load", filename="bomb.pkl"),
    "numpy": call("numpy.load", file="bomb.pkl", allow_pickle=True),
    "pandas": call("pandas.read_pickle", filepath_or_buffer="bomb.pkl"),
    "torch": call("torch.load", f="bomb.pkl", weights_only=False),
    "torch, a long name": call("torch.nn.modules.module.torch.load", f="bomb.pkl", weights_only=False),
    "torch.serialization": call("torch.serialization.load", f="bomb.pkl", weights_only=False),
}
ATTACKS = {
    **{f"{name} in an argument": ("data.augment", node) for name, node in READ_PICKLE.items()},
    "in a list": ("data.augment", [call("clbench.data.augment.RandomHorizontalFlip"), READ_PICKLE["joblib"]]),
    "nested": (
        "net",
        call("clbench.nets.module_body", module=call("torch.nn.Sequential", _args_=[READ_PICKLE["pandas"]])),
    ),
    "as a partial": ("data.source", READ_PICKLE["joblib"] | {"_partial_": True}),
    "instead of the strategy": ("strategy", READ_PICKLE["joblib"]),
    "instead of the scenario": ("scenario", READ_PICKLE["numpy"]),
    "instead of the net": ("net", READ_PICKLE["pandas"]),
    "instead of the optimizer": ("optimizer.make", READ_PICKLE["joblib"]),
    "instead of the scheduler": ("scheduler.make", READ_PICKLE["joblib"]),
    "a callback": ("trainer.callbacks", [READ_PICKLE["joblib"]]),
    "a logger": ("logger", {"mine": READ_PICKLE["joblib"]}),
    "a metric": ("metrics.extra", ["evil_module.attack"]),
    "a metric with a colon": ("metrics.extra", ["evil_module:attack"]),
    "a module of the folder": ("strategy", call("evil_module.attack")),
    "get_method": ("data.augment", call("hydra.utils.get_method", path="evil_module.attack")),
    "get_class": ("data.augment", call("hydra.utils.get_class", path="evil_module.attack")),
    "get_object": ("data.augment", call("hydra.utils.get_object", path="evil_module.attack")),
    "get_object by position": ("data.augment", call("hydra.utils.get_object", _args_=["evil_module.attack"])),
    "a command": ("data.augment", call("os.system", command="touch ../canary.txt")),
    "a process": ("data.augment", call("subprocess.run", _args_=[["touch", "../canary.txt"]])),
    "distutils": ("data.augment", call("distutils.spawn.spawn", cmd=["touch", "../canary.txt"])),
    "through a module of torchvision": (
        "net",
        call("torchvision.datasets.folder.os.system", command="touch ../canary.txt"),
    ),
    "torch.hub": ("net", call("torch.hub.load", repo_or_dir=".", model="attack", source="local")),
    "torch.jit": ("net", call("torch.jit.load", f="bomb.pkl")),
    "a function of clbench": ("net", call("clbench.experiment.new.write", kind="net", name="x", folder=".")),
    "a class that opens files": ("net", call("clbench.config.display.Display", path="../canary.txt")),
    "instantiate": ("net", call("hydra.utils.instantiate", config=READ_PICKLE["joblib"])),
    "partial": ("net", call("functools.partial", _args_=[READ_PICKLE["joblib"]])),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_foreign_folder_cannot_name_other_code(foreign, attack):
    key, value = ATTACKS[attack]
    change(foreign, key, value)
    with pytest.raises(ConfigError, match=r"config.json: .* If you trust its author, try .*trust=\['.+'\]") as error:
        clbench.load(foreign)
    assert "\n" not in str(error.value)
    assert not (foreign.parent / "canary.txt").exists()


@pytest.mark.parametrize("attack", ["joblib in an argument", "in a list", "a module of the folder", "get_method"])
def test_the_caller_can_trust_code_that_then_runs(foreign, attack):
    """This also shows that the attacks would succeed without the list."""
    key, value = ATTACKS[attack]
    change(foreign, key, value)
    with pytest.raises(ConfigError):
        clbench.load(foreign, trust=["evil_modul", "job", "joblib.load.x"])
    assert not (foreign.parent / "canary.txt").exists()
    with suppress(ConfigError):  # some of them return an object that the run cannot use
        clbench.load(foreign, trust=["evil_module", "joblib.load"])
    assert (foreign.parent / "canary.txt").exists()


def test_a_report_and_a_comparison_import_no_code_of_a_folder(foreign, finished, tmp_path, capsys):
    change(foreign, "metrics.extra", ["evil_module.attack"])
    file = foreign / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    metrics |= {"extra_metrics": {"attack": {"meaning": "evil_module.attack"}}, "attack": 0.5}
    file.write_text(json.dumps(metrics), encoding="utf-8")
    report([str(foreign), str(finished), "--output", str(tmp_path / "report")])
    assert diff([str(foreign), str(finished)]) == 0
    (foreign / "config.json").unlink()  # then they read the files of Hydra
    hydra = foreign / ".hydra/config.yaml"
    hydra.write_text(hydra.read_text(encoding="utf-8") + "evil: !!python/name:evil_module.attack\n", encoding="utf-8")
    report([str(foreign), "--output", str(tmp_path / "report")])
    assert not (tmp_path / "canary.txt").exists()


def test_a_folder_cannot_read_the_environment(foreign, monkeypatch):
    monkeypatch.setenv("SECRET", "a password")
    change(foreign, "data.name", "${oc.env:SECRET}")
    with pytest.raises(ConfigError, match="expected plain values"):
        clbench.load(foreign)


@pytest.mark.parametrize(
    "reference", ["${oc.env:SECRET}", "${data_dir}${oc.env:SECRET}", "${data_dir}/${oc.env:SECRET}"]
)
def test_a_reference_of_a_saved_run_is_not_evaluated(foreign, monkeypatch, reference):
    monkeypatch.setenv("SECRET", "a password")
    file = foreign / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["derived"]["data.name"] = reference
    file.write_text(json.dumps(content), encoding="utf-8")
    assert clbench.load(foreign).sequence.name == "permuted_digits"


@pytest.mark.parametrize(
    "node",
    [
        call("clbench.strategies.EWC", lam=1.0),
        call("clbench.training.monitor.PenaltyMonitor"),
        call("torch.nn.Linear", in_features=3, out_features=2),
        call("torch.nn.modules.linear.Linear", in_features=3, out_features=2),
        call("torch.nn.Sequential", _args_=[call("torch.nn.Flatten")]),
        call("torch.optim.RMSprop", lr=0.1),
        call("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1),
        call("torchvision.models.resnet18", weights=None),
        call("clbench.nets.timm_model", pretrained=True),
        call("clbench.nets.hf_model", name=None, config={"model_type": "gpt2"}),
        call("torchvision.ops.FrozenBatchNorm2d", num_features=3),
        call("torchvision.transforms.v2.Normalize", mean=[0.5], std=[0.5]),
        call("torchvision.datasets.CIFAR10", root="DATA/cifar", download=False),
        call("clbench.data.image_folders", folders=["DATA/a", "DATA/b"]),
        call("clbench.data.text_folders", folders=["DATA/a"], length=8),
        call("clbench.data.csv_files", files=["DATA/a.csv"], target="y"),
        call("lightning.pytorch.callbacks.LearningRateMonitor"),
        call("hydra.utils.get_class", path="torchvision.ops.FrozenBatchNorm2d"),
    ],
    ids=lambda node: node["_target_"],
)
def test_a_common_class_needs_no_trust(node):
    check_trust({"x": [node]}, Path("config.json"), "DATA")


@pytest.mark.parametrize("group", [*GROUPS, "logger"])
def test_the_choices_of_the_package_need_no_trust(group):
    for file in (conf_dir() / group).glob("*.yaml"):
        check_trust(OmegaConf.to_container(OmegaConf.load(file)), file, "${data_dir}")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (call("torchvision.models.resnet18", weights="DEFAULT"), "resnet18 with weights=DEFAULT"),
        (call("torchvision.models.resnet18", _args_=["DEFAULT"]), "resnet18 with _args_"),
        (call("clbench.nets.timm_model", checkpoint_path="a.pth"), "timm_model with checkpoint_path=a.pth"),
        (call("torchvision.datasets.MNIST", root="DATA", download=True), "MNIST with download=True"),
        (call("torchvision.datasets.MNIST", _args_=["."]), "MNIST with _args_"),
        (call("torchvision.datasets.MNIST", root="."), "MNIST with root=., a path outside the data folder DATA"),
        (call("torchvision.datasets.MNIST", root="DATA/../other"), "root=DATA/../other"),
        (call("torchvision.datasets.LSUN", root="DATA", classes=["../../x"]), "LSUN with classes=../../x"),
        (
            call("clbench.data.image_folders", folders=["DATA/a", "/etc"]),
            "image_folders with folders=/etc, a path outside",
        ),
        (call("clbench.data.image_folders", _args_=[["/etc"]]), "image_folders with _args_"),
        (call("clbench.data.text_folders", folders=["/etc"]), "text_folders with folders=/etc, a path outside"),
        (call("clbench.data.text.TextFolder", folder="/etc"), "TextFolder with folder=/etc, a path outside"),
        (call("clbench.data.text.TextFolder", _args_=["/etc", 8, 0.2]), "TextFolder with _args_"),
        (
            call("clbench.data.folders.ImageFolderSource", folder="/etc"),
            "ImageFolderSource with folder=/etc, a path outside",
        ),
        (
            call("clbench.data.csv_files", files=["DATA/../../a.csv"]),
            "csv_files with files=DATA/../../a.csv, a path outside",
        ),
        (call("clbench.nets.hf_model", name="a/b"), "hf_model with name=a/b"),
        (call("clbench.nets.hf_model", _args_=[[8], "a/b"]), "hf_model with _args_"),
        (
            call("clbench.nets.hf_model", config={"text_config": {"attn_implementation": "a/b"}}),
            "hf_model with config={",
        ),
        (call("clbench.data.padding.Padded", dataset=None, by=1, root="/tmp"), "Padded with root=/tmp"),
        (call("torchvision.models.list_models"), "x._target_='torchvision.models.list_models' could run code"),
        (call("torch.nn.Embedding.from_pretrained"), "could run code"),
        (call("torch.optim.optimizer.torch.nn.Module"), "could run code"),
    ],
    ids=lambda value: value["_target_"] if isinstance(value, dict) else "",
)
def test_arguments_that_leave_the_data_folder_need_trust(node, message):
    with pytest.raises(ConfigError) as error:
        check_trust({"x": node}, Path("config.json"), "DATA")
    assert message in str(error.value)
    check_trust({"x": node}, Path("config.json"), "DATA", trust=[node["_target_"]])


def test_a_name_that_is_no_text_is_refused(foreign):
    change(foreign, "net", {"_target_": READ_PICKLE["joblib"]})
    with pytest.raises(ConfigError, match=r"net._target_=.* expected the name of a class or function"):
        clbench.load(foreign)


def test_trust_is_a_list_of_names(finished):
    for trust in ("my_module", [""], [1]):
        with pytest.raises(ConfigError, match=r"expected a list of modules or full names"):
            clbench.load(finished, trust=trust)
