import sys

import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.nets import add_lora

pytest.importorskip("peft")

SHORT = ("data=split_digits", "data.tasks=2", "steps=3", "net=mlp", "net.hidden=[6,5]")
LORA = "net.lora={rank:2,targets:['3']}"


def saved(folder, task=1):
    return torch.load(folder / f"checkpoints/task_{task}.ckpt", weights_only=True)


def test_an_adapter_adds_an_update_of_low_rank():
    """The update is zero at first, and alpha / rank scales it."""
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.double)
    before = layer(x).detach()
    body = add_lora(nn.Sequential(layer), rank=2, targets=["0"], alpha=6)
    assert torch.equal(body(x), before)
    weights = dict(body.double().named_parameters())
    a, b = weights["0.lora_A.default.weight"], weights["0.lora_B.default.weight"]
    with torch.no_grad():
        b.normal_()
    torch.testing.assert_close(body(x), before + 3 * x @ a.T @ b.T)


def test_a_pattern_selects_layers_by_their_full_names():
    """The layer 0 is not also the layer 1.0, as it would be by peft's rule for lists."""
    body = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    add_lora(body, rank=1, targets=["0", "2"])
    assert {name.split(".lora")[0] for name, p in body.named_parameters() if p.requires_grad} == {"0", "2"}


@pytest.mark.parametrize("strategy", ["ewc", "mas", "si"])
def test_a_penalty_covers_adapters_and_head_only(run, tmp_path, composed, strategy):
    """All other weights stay as they were."""
    options = (*SHORT, LORA, f"strategy={strategy}")
    run(*options)
    state = saved(tmp_path / "run")
    importance = set(state["strategy"]["importance"])
    assert {name for name in importance if "body" in name} == {
        "net.body.3.lora_A.default.weight",
        "net.body.3.lora_B.default.weight",
    }
    assert any("head" in name for name in importance)
    for name, weight in build(composed(*options))[1].named_parameters():
        if "lora" in name or "body" not in name:
            assert not torch.equal(weight, state["learner"][name]), name
        else:
            assert torch.equal(weight, state["learner"][name]), name


def test_adapters_start_from_the_weights_of_init_from(run, tmp_path, composed):
    run(*SHORT, "strategy=finetune")
    file = tmp_path / "run/checkpoints/task_1.ckpt"
    _, learner, _ = build(composed(*SHORT, LORA, f"init_from={file}"))
    base = learner.net.body[3].base_layer.weight
    assert torch.equal(base, saved(tmp_path / "run")["learner"]["net.body.3.weight"])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            "{rank:2,targets:[qkv]}",
            r"net.lora.targets=qkv: expected a pattern that matches a linear .* 2 names are 1, 3",
        ),
        ("{rank:2,targets:['2']}", "net.lora.targets=2: expected a pattern that matches a linear layer"),
        ("{rank:2,targets:[]}", r"net.lora.targets=\[\]: expected at least one pattern"),
        ("{rank:2}", "expected rank, targets and optionally alpha"),
        ("{rank:2,targets:['3'],bias:all}", "expected rank, targets and optionally alpha"),
        ("8", "net.lora=8: expected rank, targets and optionally alpha"),
        ("{rank:0,targets:['3']}", "net.lora.rank=0: expected an integer >= 1"),
        ("{rank:2,targets:'3'}", "net.lora.targets='?3'?: expected a list of strings"),
        ("{rank:2,targets:['3'],alpha:-1}", "net.lora.alpha=-1: expected an integer >= 1"),
    ],
)
def test_a_wrong_value_of_lora_is_one_line_before_training(run, lora, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(*SHORT, f"net.lora={lora}", "dry_run=true")
    assert "\n" not in str(caught.value)


def test_without_peft_the_package_is_named(composed, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'net.lora needs the package peft. Try pip install "clbench\[models\]"'):
        build(composed(*SHORT, LORA))


def test_a_body_without_linear_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a body with layers of the class torch.nn.Linear, got none"):
        add_lora(nn.Sequential(nn.Conv2d(1, 2, 3)), rank=1, targets=["*"])
