import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.nets import freeze

SHORT = ("data=split_digits", "data.tasks=2", "steps=2")
SMALL_CNN = ("net=cnn", "net.channels=[4,4]", "net.width=8")
CONVOLUTION = ("+net.module.out_channels=2", "+net.module.kernel_size=3", "net.flatten=true")
VIT = ("net=timm", "net.name=test_vit", "+net.img_size=8", "+net.patch_size=4")


def saved(folder):
    return torch.load(folder / "checkpoints/task_1.ckpt", weights_only=True)


@pytest.mark.parametrize("strategy", ["ewc", "mas", "si", "online_ewc"])
def test_a_penalty_has_no_frozen_parameter(run, tmp_path, composed, strategy):
    """The weights do not change, and all others are penalised."""
    options = (*SHORT, *SMALL_CNN, f"strategy={strategy}", "net.freeze=['0.*','*.bias']")
    run(*options)
    state, learner = saved(tmp_path / "run"), build(composed(*options))[1]
    importance = {name for name in state["strategy"]["importance"] if "body" in name}
    assert importance == {"net.body.3.weight", "net.body.7.weight"}
    for name, weight in learner.named_parameters():
        if "body" in name:
            assert torch.equal(weight, state["learner"][name]) is not weight.requires_grad, name


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["net=mlp", "net.hidden=[5]"], "*"),
        (["net=custom", "net._target_=clbench.nets.mlp", "+net.hidden=[5]"], "1.*"),
        (["net=module", "net.module._target_=torch.nn.LazyConv2d", *CONVOLUTION], "0.*"),
        (["net=torchvision"], "layer?.*"),
        (VIT, "blocks.*"),
    ],
)
def test_every_kind_of_net_can_be_frozen(composed, options, pattern):
    if "net=timm" in options:
        pytest.importorskip("timm")
    _, learner, _ = build(composed(*options, f"net.freeze=['{pattern}']"))
    body = learner.net.body
    assert any(not p.requires_grad for p in body.parameters())
    assert all(p.requires_grad for p in learner.net.head.parameters())


def test_a_frozen_body_leaves_a_head_that_learns(run, tmp_path):
    run(*SHORT, *SMALL_CNN, "strategy=ewc", "net.freeze=['*']")
    assert {name.split(".")[1] for name in saved(tmp_path / "run")["strategy"]["importance"]} == {"head"}


def test_a_net_without_frozen_parameters_has_the_same_hash(run):
    """An empty list is the default, also of runs before this option."""
    base = run(*SHORT, folder="a")
    assert run(*SHORT, "net.freeze=[]", folder="b")["config_hash"] == base["config_hash"]
    assert run(*SHORT, "net.freeze=['*']", folder="c")["config_hash"] != base["config_hash"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("0", r"net.freeze=0: expected a pattern that matches a parameter of the body. Try 0.\*"),
        ("0.weights", r"Did you mean 0.weight\? The first of 4 names are 0.weight, 0.bias"),
        ("net.body.0.*", "The first of 4 names are"),
    ],
)
def test_a_pattern_without_a_parameter_is_refused(pattern, message):
    body = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=message):
        freeze(body, [pattern])


def test_freeze_takes_a_list_of_patterns(run):
    with pytest.raises(ConfigError, match="net.freeze=abc: expected a list of strings, got 'abc'"):
        run("net.freeze=abc", "dry_run=true")


def test_without_a_net_the_choices_are_named(run):
    with pytest.raises(ConfigError, match="net: expected one of cnn, custom"):
        run("~net", "dry_run=true")
