import sys

import pytest
import torch

from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.nets import timm_model

timm = pytest.importorskip("timm")

TINY_VIT = ("net=timm", "net.name=test_vit", "+net.img_size=8", "+net.patch_size=4")
SHORT = ("data=split_digits", "data.tasks=2", "steps=2", "samples=4")


def test_a_timm_model_is_unchanged_up_to_its_classifier():
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", in_chans=1).eval()
    ours = timm_model((1, 32, 32), "test_resnet").eval()
    ours.load_state_dict({name: t for name, t in theirs.state_dict().items() if not name.startswith("fc.")})
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(theirs.fc(ours(x)), theirs(x))


def test_a_vit_of_timm_is_trained_and_its_weights_are_penalised(run, tmp_path):
    result = run(*TINY_VIT, *SHORT, "strategy=ewc")
    assert result["status"] == "complete"
    importance = torch.load(tmp_path / "run/checkpoints/task_0.ckpt", weights_only=True)["strategy"]["importance"]
    assert "net.body.blocks.0.attn.qkv.weight" in importance


def test_weights_in_a_file_need_no_network(tmp_path, monkeypatch):
    """The file also has the classifier, which timm leaves out."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs = timm.create_model("test_resnet").state_dict()
    torch.save(theirs, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    body = timm_model((3, 32, 32), "test_resnet", pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in body.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["net.name=resnet81"],
            r"net.name=resnet81: expected a model of timm. Did you mean resnet18\? timm.list_models",
        ),
        (["net.name=hf-hub:a/b"], r"net.name=hf-hub:a/b: expected a model of timm. timm.list_models\(\) lists all"),
        (["net.pretrained=maybe"], "net.pretrained=maybe: expected true or false"),
    ],
)
def test_a_wrong_option_of_timm_is_one_line_before_training(run, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run("net=timm", *options, "dry_run=true")
    assert "\n" not in str(caught.value)


def test_a_model_without_pretrained_weights_is_named(composed):
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(ConfigError, match=f"timm has no weights of {name}. Try net.pretrained=false"):
        build(composed("net=timm", f"net.name={name}", "net.pretrained=true"))


def test_weights_that_cannot_be_downloaded_are_one_line(composed, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match="weights of test_resnet are not in the cache and could not be .* set HF_HOME"
    ):
        build(composed("net=timm", "net.name=test_resnet", "net.pretrained=true"))


def test_without_timm_the_package_is_named(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'net=timm needs the package timm. Try pip install "clbench\[models\]"'):
        build(composed("net=timm"))
