"""The option net.activation of the MLPs and the CNN."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import clbench
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.importance import fisher, mas
from clbench.nets import cnn, mlp
from clbench.nets.activation import ACTIVATIONS
from clbench.nets.calibration import calibrate, calibration
from tests import references

each = pytest.mark.parametrize("activation", ACTIVATIONS)
NETS = {
    "mlp": lambda **options: mlp((1, 4, 4), (5, 4), **options),
    "cnn": lambda **options: cnn((1, 4, 4), (3,), 4, **options),
}


def classifier(net, activation):
    torch.manual_seed(0)
    return nn.Sequential(NETS[net](activation=activation), nn.Linear(4, 3)).double().eval()


def examples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.double), torch.tensor([0, 1, 2, 0, 1, 2])


@each
def test_the_activation_follows_every_hidden_layer(activation):
    """It takes the place of ReLU, and the weights are the same."""
    kind = ACTIVATIONS[activation].__name__
    assert [type(layer).__name__ for layer in NETS["mlp"](activation=activation)] == ["Flatten"] + 2 * ["Linear", kind]
    layers = ["Conv2d", kind, "MaxPool2d", "Flatten", "Linear", kind]
    assert [type(layer).__name__ for layer in NETS["cnn"](activation=activation)] == layers
    normalised = mlp((4,), (3,), batch_norm=True, dropout=0.5, activation=activation)
    assert [type(layer).__name__ for layer in normalised][1:] == ["Linear", kind, "BatchNorm1d", "Dropout"]
    for net in NETS:
        pairs = zip(classifier(net, activation).parameters(), classifier(net, "relu").parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def test_the_outputs_are_those_of_the_formula():
    x, _ = examples()
    body = classifier("mlp", "tanh")[0]
    first, second = body[1], body[3]
    expected = torch.tanh(torch.tanh(x.flatten(1) @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(body(x), expected, rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize("net", NETS)
def test_importances_equal_a_loop_over_the_examples(net, activation, caplog):
    """In float64, without a parameter that is differentiated once per example."""
    module, (x, y) = classifier(net, activation), examples()
    with caplog.at_level(logging.WARNING, "clbench"):
        found = {"fisher": fisher(module, [(x, y)]), "mas": mas(module, [(x, y)])}
    assert not caplog.records
    expected = {"fisher": references.fisher(module, x, y), "mas": references.mas(module, x)}
    for name, values in expected.items():
        for key, value in values.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-9, atol=1e-12, msg=f"{name} of {key}")


@each
@pytest.mark.parametrize("net", NETS)
def test_calibration_starts_as_the_plain_net_and_scales_it(net, activation):
    module, (x, _) = classifier(net, activation), examples()
    plain = module(x)
    calibrate(module)
    torch.testing.assert_close(module(x), plain, rtol=1e-12, atol=1e-12)
    parameters = calibration(module)
    gradients = torch.autograd.grad(module(x).square().sum(), list(parameters.values()))
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("net", ["mlp", "mlp_bn", "cnn"])
def test_nccl_learns_with_another_activation(run, net):
    found = run(
        f"net={net}", "net.activation=tanh", "strategy=nccl", "data.tasks=2", "steps=80", "lr=0.1", "scenario=domain"
    )
    assert found["status"] == "complete" and found["learning_accuracy"] > 0.3


def test_the_option_reaches_the_net_and_relu_is_the_default(composed):
    kinds = [
        [type(part) for part in build(composed("data.tasks=2", "strategy=finetune", *more))[1].net.body][2]
        for more in ([], ["net.activation=relu"], ["net.activation=gelu"])
    ]
    assert kinds == [nn.ReLU, nn.ReLU, nn.GELU]


def test_an_unknown_activation_is_refused_before_training(tmp_path):
    message = "^net.activation=swish: expected one of relu, tanh, gelu, elu, leaky_relu, sigmoid, got 'swish'"
    with pytest.raises(ConfigError, match=message):
        clbench.run(["net.activation=swish", "trainer=cpu"], tmp_path / "run")


def test_the_resnets_have_no_other_activation(tmp_path):
    with pytest.raises(ConfigError, match="net.activation=tanh: .* has no option activation"):
        clbench.run(["net=resnet18_reduced", "+net.activation=tanh", "trainer=cpu"], tmp_path / "run")
