"""Neuron calibration: what it computes, that it initially changes nothing, and that it can be removed."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from clbench.nets import Net, SlicedHead, cnn, mlp, resnet18_reduced
from clbench.nets.calibration import (
    CalibratedNeurons,
    cached_weights,
    calibrate,
    calibrated,
    calibration,
    layers,
    remove,
)
from clbench.nets.resnet import BasicBlock


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


def small_mlp() -> nn.Sequential:
    return nn.Sequential(*mlp((1, 3, 3), hidden=(6, 5)), nn.Linear(5, 4))


def small_cnn() -> nn.Sequential:
    return nn.Sequential(*cnn((2, 8, 8), channels=(3, 4), width=5), nn.Linear(5, 4))


def small_resnet() -> nn.Sequential:
    return nn.Sequential(*resnet18_reduced((3, 8, 8), width=2), nn.Linear(16, 4))


NETS = {
    "mlp": (small_mlp, (5, 1, 3, 3)),
    "cnn": (small_cnn, (5, 2, 8, 8)),
    "resnet": (small_resnet, (5, 3, 8, 8)),
}


def perturbed(net: nn.Module) -> nn.Module:
    """Set the calibration to values other than the identity."""
    with torch.no_grad():
        for p in calibration(net).values():
            p.add_(0.3 * torch.randn_like(p))
    return net


def by_definition(layer: nn.Module, psi, scale, shift, x):
    """Return h~ of one layer, with the weight tiled by loops."""
    weight = layer._parameters["weight"].detach()
    tiled = torch.empty_like(weight)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            tiled[o, i] = weight[o, i] * (psi[o, 0] if weight.ndim == 2 else psi[o, i].reshape(()))
    if isinstance(layer, nn.Linear):
        return (1 + scale) * nn.functional.linear(x, tiled, layer.bias)
    h = nn.functional.conv2d(x, tiled, layer.bias, layer.stride, layer.padding)
    return (1 + scale.reshape(1, -1, 1, 1)) * (h + shift.reshape(1, -1, 1, 1))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_a_new_calibrated_net_is_the_net_bit_for_bit(name, training):
    make, shape = NETS[name]
    net, x = make().train(training), torch.randn(shape)
    plain = deepcopy(net)
    calibrate(net)
    assert len(calibrated(net)) == len(layers(plain))
    assert torch.equal(net(x), plain(x))


def test_a_calibrated_mlp_has_the_parameters_of_the_paper():
    net = Net(mlp((1, 28, 28), hidden=(256, 256)), SlicedHead(256, [(0, 10)]))
    assert sum(p.numel() for p in net.parameters()) == 269_322
    calibrate(net)
    assert sum(p.numel() for p in calibration(net).values()) == 1_044
    assert sum(p.numel() for p in net.parameters()) == 269_322 + 1_044


def test_a_calibrated_resnet_has_the_parameters_of_the_paper():
    """The net is the reduced ResNet-18 with 85 outputs."""
    net = Net(resnet18_reduced((3, 32, 32)), SlicedHead(160, [(0, 85)]))
    assert sum(p.numel() for p in net.parameters()) == 1_106_825
    blocks = [name for name, part in net.named_modules() if isinstance(part, BasicBlock)]
    calibrate(net, [f"{block}.{conv}" for block in blocks for conv in ("conv1", "conv2")])
    assert sum(p.numel() for p in calibration(net).values()) == 121_600


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (6, 4)),
        (nn.Linear(4, 3, bias=False), (6, 4)),
        (nn.Conv2d(4, 3, 3, padding=1, bias=False), (6, 4, 5, 5)),
        (nn.Conv2d(4, 2, 3, stride=2), (6, 4, 5, 5)),
    ],
    ids=repr,
)
def test_a_calibrated_layer_computes_what_its_definition_says(layer, shape):
    layer = nn.Sequential(layer.double())
    calibrate(layer)
    perturbed(layer)
    (inner,), x = layer, torch.randn(shape)
    parts = inner.calibration
    expected = by_definition(inner, parts.psi, parts.scale, parts.shift, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)
    with cached_weights([inner]):
        torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)


def test_psi_scale_and_shift_have_the_shapes_of_the_paper():
    net = nn.Sequential(nn.Conv2d(4, 3, 5), nn.Flatten(), nn.Linear(3, 2))
    calibrate(net)
    shapes = {name: tuple(p.shape) for name, p in calibration(net).items()}
    assert shapes == {
        "0.calibration.psi": (3, 4, 1, 1),
        "0.calibration.scale": (3, 1, 1),
        "0.calibration.shift": (3, 1, 1),
        "2.calibration.psi": (2, 1),
        "2.calibration.scale": (2,),
    }


@pytest.mark.parametrize("name", NETS)
def test_cached_calibrated_weights_give_the_same_gradients(name):
    make, shape = NETS[name]
    net, x = make().eval(), torch.randn(shape)
    calibrate(net)
    perturbed(net)
    free = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    with cached_weights(list(calibrated(net).values())):
        cached = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    torch.testing.assert_close(free, cached, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_psi_follows_from_calibrated_weights():
    """It is computed from the gradient of the calibrated weights and equals that of autograd."""
    net, x = perturbed_mlp_and_conv()
    parts = list(calibrated(net).values())
    expected = torch.autograd.grad(net(x).square().sum(), [part.calibration.psi for part in parts])
    with cached_weights(parts) as weights:
        gradients = torch.autograd.grad(net(x).square().sum(), weights)
    found = [part.psi_gradient(g) for part, g in zip(parts, gradients, strict=True)]
    torch.testing.assert_close(tuple(found), expected, rtol=1e-9, atol=1e-12)


def perturbed_mlp_and_conv():
    net = small_cnn()
    calibrate(net)
    return perturbed(net), torch.randn(5, 2, 8, 8)


@pytest.mark.parametrize("name", NETS)
def test_removing_the_calibration_restores_the_net(name):
    make, shape = NETS[name]
    net, x = make().eval(), torch.randn(shape)
    plain, before = deepcopy(net), dict(net.named_parameters())
    calibrate(net)
    perturbed(net)
    assert not torch.allclose(net(x), plain(x))
    remove(net)
    assert [type(part) for part in net.modules()] == [type(part) for part in plain.modules()]
    after = dict(net.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert torch.equal(net(x), plain(x))


def test_removing_it_from_a_copy_keeps_the_original_calibrated():
    net = small_mlp()
    calibrate(net)
    perturbed(net)
    x = torch.randn(5, 1, 3, 3)
    before, copy = net(x), deepcopy(net)
    assert torch.equal(copy(x), before)
    remove(copy)
    assert torch.equal(net(x), before)
    assert len(calibrated(net)) == 3 and not calibrated(copy)


@pytest.mark.parametrize("name", NETS)
def test_the_state_loads_into_another_calibrated_net(name):
    """The weights keep the names that they have in the plain net."""
    make, shape = NETS[name]
    net, other, x = make().eval(), make().eval(), torch.randn(shape)
    plain = set(net.state_dict())
    calibrate(net)
    calibrate(other)
    perturbed(net)
    assert set(net.state_dict()) - plain == set(calibration(net))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_the_residual_form_equals_a_factor_that_starts_at_one():
    """(1 + lambda) h from lambda = 0 equals f h from f = 1 under SGD without weight decay."""
    net = small_mlp()
    linear = [part for part in net if isinstance(part, nn.Linear)]
    theta = [[p.detach().clone().requires_grad_() for p in part.parameters()] for part in linear]
    psi = [torch.ones(len(w), 1, requires_grad=True) for w, _ in theta]
    f = [torch.ones(len(w), requires_grad=True) for w, _ in theta]
    calibrate(net)
    ours = torch.optim.SGD(net.parameters(), lr=0.1)
    theirs = torch.optim.SGD([*psi, *f, *(p for pair in theta for p in pair)], lr=0.1)
    for _ in range(50):
        x, y = torch.randn(8, 1, 3, 3), torch.randint(4, (8,))
        h = x.flatten(1)
        for k, (w, b) in enumerate(theta):
            h = f[k] * nn.functional.linear(h, psi[k] * w, b)
            h = h.relu() if k < 2 else h
        for optimizer, loss in ((ours, cross_entropy(net(x), y)), (theirs, cross_entropy(h, y))):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for part, g in zip(linear, f, strict=True):
        assert part.calibration.scale.abs().max() > 1e-2
        torch.testing.assert_close(1 + part.calibration.scale, g, rtol=1e-12, atol=1e-12)


def calibrated_before_bn() -> tuple[nn.Sequential, torch.Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    calibrate(net, ["0"])
    return net, 3 * torch.randn(16, 3, 6, 6)


def test_feature_calibration_before_batchnorm_acts_in_eval_only():
    """In train mode BatchNorm cancels it, so its gradients are almost zero."""
    net, x = calibrated_before_bn()
    part = net[0].calibration
    net(x)  # updates the statistics
    size = {}
    for mode in (True, False):
        net.train(mode)
        gradients = torch.autograd.grad(net(x).square().mean(), [part.scale, part.shift])
        size[mode] = [g.abs().max().item() for g in gradients]
    assert size[True][0] < 1e-4 * size[False][0]  # the rest is caused by BatchNorm's eps
    assert size[True][1] < 1e-12 < 1e-3 < size[False][1]
    net.train()
    before = net(x)
    with torch.no_grad():
        part.scale.fill_(0.5)
        part.shift.fill_(0.5)
    assert (net(x) - before).abs().max() < 1e-3


def test_before_batchnorm_only_the_relative_psi_acts():
    """Scaling psi over all inputs of an output changes nothing."""
    net, x = calibrated_before_bn()
    psi = net[0].calibration.psi
    (g,) = torch.autograd.grad(net.train()(x).square().mean(), psi)
    assert (psi * g).sum(1).abs().max() < 1e-4 * g.abs().max()  # Euler: the loss is homogeneous of degree 0 in psi[o]


def test_feature_calibration_acts_in_an_mlp():
    net = small_mlp()
    calibrate(net)
    gradients = torch.autograd.grad(
        net(torch.randn(5, 1, 3, 3)).square().mean(), [part.calibration.scale for part in calibrated(net).values()]
    )
    assert all(g.abs().max() > 1e-4 for g in gradients)


def test_either_part_can_be_left_out():
    x = torch.randn(5, 2, 8, 8)
    for weights, features, kinds in ((True, False, {"psi"}), (False, True, {"scale", "shift"})):
        net = small_cnn()
        plain = deepcopy(net)
        calibrate(net, weights=weights, features=features)
        assert {name.rpartition(".")[2] for name in calibration(net)} == kinds
        assert torch.equal(net(x), plain(x))
        before = net(x)
        assert not torch.allclose(perturbed(net)(x), before)


def test_a_layer_with_its_own_forward_keeps_it():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    net = nn.Sequential(Doubled(3, 2))
    x = torch.randn(4, 3)
    before = net(x)
    calibrate(net)
    assert torch.equal(net(x), before) and not isinstance(net[0], CalibratedNeurons)
    with torch.no_grad():
        net[0].calibration.psi.mul_(3.0)
    torch.testing.assert_close(net(x), 2 * (3 * (before / 2 - net[0].bias) + net[0].bias))


def test_a_calibrated_transformer_avoids_the_fast_path():
    """Without hooks its fast path reads the weights of its layers, so the features would not be calibrated."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    plain = net(x)
    calibrate(net)
    assert list(calibrated(net)) == ["linear1", "linear2"]  # the output layer of its attention is never called
    torch.testing.assert_close(net(x), plain)
    with torch.no_grad():
        for p in calibration(net).values():
            p.add_(0.3 * torch.rand_like(p))
    with_gradients = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), with_gradients.detach())
        assert not torch.allclose(with_gradients, plain, atol=1e-2)
    remove(net)
    assert not any(layer._forward_hooks for layer in net.modules())


def test_missing_or_already_calibrated_layers_are_refused():
    net = small_mlp()
    with pytest.raises(ValueError, match="'head': expected a Linear or convolutional layer. Try one of 1, 3, 5"):
        calibrate(net, ["head"])
    calibrate(net, ["1"])
    with pytest.raises(ValueError, match="'1' is already calibrated"):
        calibrate(net)
    assert list(calibrated(net)) == ["1"]
