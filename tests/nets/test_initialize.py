"""The option net.init: initial weights of the body and of every head."""

from __future__ import annotations

from math import prod, sqrt

import pytest
import torch
from torch import nn

import clbench
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.nets import initialize
from clbench.nets.initialize import LAYERS

NETS = ("mlp", "mlp_bn", "cnn", "resnet18_reduced", "resnet18_vandeven")
SCENARIOS = (["scenario=task"], ["scenario=task", "scenario.head=single"], ["scenario=domain"], ["scenario=class"])


def built(composed, *overrides):
    """Return the net of a run on three tasks of digits, and its sequence."""
    sequence, learner, _ = build(composed("data.tasks=3", "strategy=finetune", *overrides))
    return learner.net, sequence


def layers_of(net):
    """Return the linear and convolutional layers of a net with their numbers of inputs and outputs of a weight."""
    layers = [layer for layer in net.modules() if isinstance(layer, LAYERS)]
    return [(x, x.weight[0].numel(), len(x.weight) * prod(x.weight.shape[2:])) for x in layers]


@pytest.mark.parametrize("net", NETS)
def test_xavier_is_uniform_within_its_bound_and_without_bias(composed, net):
    found, _ = built(composed, f"net={net}", "net.init=xavier")
    assert {"body", "head"} == {name for name, part in found.named_children() if layers_of(part)}
    for layer, inputs, outputs in layers_of(found):
        bound = sqrt(6 / (inputs + outputs))
        assert layer.weight.abs().max() <= bound
        if layer.weight.numel() > 10_000:
            assert layer.weight.abs().max() > 0.99 * bound
            assert layer.weight.std().item() == pytest.approx(bound / sqrt(3), rel=0.02)
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("net", NETS)
def test_kaiming_has_variance_2_over_fan_in_and_no_bias(composed, net):
    found, _ = built(composed, f"net={net}", "net.init=kaiming")
    for layer, inputs, _ in layers_of(found):
        if layer.weight.numel() > 10_000:
            assert layer.weight.std().item() == pytest.approx(sqrt(2 / inputs), rel=0.02)
            assert layer.weight.abs().max() > 3 * sqrt(2 / inputs)  # not uniform
        assert layer.bias is None or not layer.bias.any()


def test_each_law_is_drawn_in_the_order_of_the_layers(composed):
    net, _ = built(composed, "net=cnn")
    laws = {
        "xavier": lambda w, inputs, outputs: w.uniform_(-sqrt(6 / (inputs + outputs)), sqrt(6 / (inputs + outputs))),
        "kaiming": lambda w, inputs, outputs: w.normal_(0, sqrt(2 / inputs)),
    }
    for init, law in laws.items():
        torch.manual_seed(3)
        initialize(net, init)
        torch.manual_seed(3)
        for layer, *fans in layers_of(net):
            assert torch.equal(layer.weight, law(torch.empty_like(layer.weight), *fans)), init


@pytest.mark.parametrize("options", SCENARIOS, ids=" ".join)
def test_zero_head_gives_zero_logits_for_every_task(composed, options):
    """The body has the same weights as with net.init=torch."""
    net, sequence = built(composed, "net.init=zero_head", *options)
    other, _ = built(composed, *options)
    assert all(torch.equal(p, q) for p, q in zip(net.body.parameters(), other.body.parameters(), strict=True))
    assert all(p.any() for p in other.head.parameters())
    for task, loader in enumerate(sequence[2].test_dataloader()):
        batch = next(iter(loader))
        z = net(batch.x, task)
        assert z.isfinite().all() and not z.any()


@pytest.mark.parametrize("init", ["torch", "zero_head"])
def test_an_init_without_random_numbers_draws_none(init):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    weights, before = [p.clone() for p in net.parameters()], torch.get_rng_state()
    initialize(net, init)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), weights, strict=True))


@pytest.mark.parametrize("init", ["torch", "xavier", "kaiming"])
def test_the_seed_of_the_run_decides_the_initial_weights(composed, init):
    first, again, other = (built(composed, f"net.init={init}", f"seed={seed}")[0] for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    weights = zip(layers_of(first), layers_of(other), strict=True)
    assert not any(torch.equal(layer.weight, another.weight) for (layer, *_), (another, *_) in weights)


def test_xavier_zero_head_is_xavier_with_a_head_of_zeros(composed):
    net, _ = built(composed, "net.init=xavier_zero_head")
    other, _ = built(composed, "net.init=xavier")
    assert all(torch.equal(p, q) for p, q in zip(net.body.parameters(), other.body.parameters(), strict=True))
    assert not any(p.any() for p in net.head.parameters())


def test_the_first_loss_of_zero_head_is_that_of_guessing(run):
    """No training changes it: a learning rate of 0 leaves the accuracy of the first class and nll = log 10."""
    found = run("net.init=zero_head", "lr=0", "epochs=1", "data.tasks=2", "strategy=finetune", "checkpoints=none")
    assert [task["nll"] for task in found["per_task"]] == pytest.approx(2 * [torch.tensor(10.0).log().item()])


def test_a_file_of_weights_replaces_the_body_and_not_the_head(composed, tmp_path):
    source, _ = built(composed, "seed=5")
    torch.save(source.body.state_dict(), tmp_path / "body.pt")
    net, _ = built(composed, "net.init=zero_head", f"init_from={tmp_path}/body.pt")
    assert all(torch.equal(p, q) for p, q in zip(net.body.parameters(), source.body.parameters(), strict=True))
    assert not any(p.any() for p in net.head.parameters())


def own_body(shape, init=0):
    """Return a body with an argument of the name of the option."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 4 + init))


def test_a_net_of_the_user_may_have_an_argument_init(composed):
    """It is not the option, and the head keeps the weights of PyTorch."""
    net, _ = built(composed, "net=custom", "net._target_=tests.nets.test_initialize.own_body", "+net.init=3")
    assert net.head.heads[0].in_features == 7 and net.head.heads[0].bias.any()


@pytest.mark.parametrize("net", ["fcn", "custom"])
def test_other_nets_refuse_the_option_as_unknown(tmp_path, net):
    with pytest.raises(ConfigError, match="net.init=xavier: .* has no option init"):
        clbench.run([f"net={net}", "+net.init=xavier", "trainer=cpu"], tmp_path / "run")


def test_an_unknown_init_is_refused_before_training(tmp_path):
    with pytest.raises(
        ConfigError, match="^net.init=glorot: expected one of torch, xavier, kaiming, zero_head, xavier_zero_head, got"
    ):
        clbench.run(["net.init=glorot", "trainer=cpu"], tmp_path / "run")
