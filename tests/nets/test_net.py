import json
import sys
from copy import deepcopy
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from clbench.data.scenario import Scenario
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.experiment.checks import classifier_in_body
from clbench.nets import (
    MultiHead,
    Net,
    SlicedHead,
    cnn,
    features_of,
    features_on,
    flatten_pixels,
    init_from,
    mlp,
    module_body,
    resnet18_reduced,
    resnet18_vandeven,
    torchvision_model,
)
from clbench.nets.heads import Head
from clbench.training.measures import Measure
from tests.conftest import trainer

TASKS = torch.tensor([0, 2, 1, 1, 0])


def features():
    return torch.randn(len(TASKS), 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def heads(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    own_columns = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return [MultiHead(6, sizes).double(), SlicedHead(6, own_columns).double()]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_mlp_of_the_literature_has_478410_parameters():
    """The net is the MLP with two hidden layers of 400 units on MNIST."""
    assert parameters(Net(mlp((1, 28, 28), (400, 400)), MultiHead(400, [10]))) == 478_410


@pytest.mark.parametrize(("shape", "hidden"), [((1, 8, 8), [5]), ((3, 4, 4), [7, 3]), ((10,), [4, 4, 2])])
def test_an_mlp_gives_features_of_its_last_width(shape, hidden):
    body = mlp(shape, hidden)
    assert body(torch.zeros(4, *shape)).shape == (4, hidden[-1])
    assert features_of(body, shape) == hidden[-1]


def test_an_mlp_has_batch_norm_after_relu_and_then_dropout():
    """This is the order in every hidden layer."""
    layers = [type(layer).__name__ for layer in mlp((4,), (3, 2), batch_norm=True, dropout=0.5)]
    assert layers == ["Flatten"] + 2 * ["Linear", "ReLU", "BatchNorm1d", "Dropout"]
    assert [type(layer).__name__ for layer in mlp((4,), (3,))] == ["Flatten", "Linear", "ReLU"]


@pytest.mark.parametrize("sizes", [[3, 3, 3], [2, 4, 1]], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", [0, 1], ids=["multi", "sliced"])
def test_a_task_per_example_gives_the_rows_of_a_task_per_batch(kind, sizes):
    head, x = heads(sizes)[kind], features()
    mixed = head(x, TASKS)
    assert mixed.shape == (len(x), max(sizes))
    for row, task in enumerate(TASKS.tolist()):
        alone = head(x, task)
        assert alone.shape == (len(x), sizes[task])
        torch.testing.assert_close(mixed[row, : sizes[task]], alone[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [0, 1], ids=["multi", "sliced"])
def test_outputs_of_other_tasks_are_minus_infinity(kind):
    """The gradients of the loss stay finite."""
    head, sizes = heads([2, 4, 1])[kind], [2, 4, 1]
    outputs = head(features(), TASKS)
    for row, task in enumerate(TASKS.tolist()):
        assert outputs[row].isneginf().tolist() == [False] * sizes[task] + [True] * (4 - sizes[task])
    nn.functional.cross_entropy(outputs, torch.zeros_like(TASKS)).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert any((p.grad != 0).any() for p in head.parameters())


def test_a_head_that_a_batch_does_not_use_gets_no_gradient():
    head = MultiHead(6, [3, 3, 3]).double()
    head(features(), 1).sum().backward()
    assert all(p.grad is not None for p in head.heads[1].parameters())
    assert all(p.grad is None for p in [*head.heads[0].parameters(), *head.heads[2].parameters()])


def test_a_head_absent_from_a_mixed_batch_gets_zero_gradient():
    head = MultiHead(6, [3, 3, 3]).double()
    head(features(), torch.tensor([0, 2, 2, 0, 0])).sum().backward()
    assert all((p.grad == 0).all() for p in head.heads[1].parameters())


@pytest.mark.parametrize(
    ("slices", "outputs"),
    [([(0, 2), (2, 4)], 4), ([(0, 2), (0, 4)], 4), ([(0, 5), (0, 5)], 5), ([(0, 1), (1, 4)], 4)],
    ids=["task", "class", "domain", "unequal"],
)
def test_a_sliced_head_gives_its_columns_of_one_layer(slices, outputs):
    head, x = SlicedHead(6, slices).double(), features()
    assert head.linear.out_features == outputs
    for task, (start, stop) in enumerate(slices):
        assert torch.equal(head(x, task), head.linear(x)[:, start:stop])


def test_columns_that_do_not_compete_get_a_gradient_of_zero():
    head = SlicedHead(6, [(0, 2), (2, 5)]).double()
    head(features(), 1).sum().backward()
    assert (head.linear.weight.grad[:2] == 0).all()
    assert (head.linear.weight.grad[2:] != 0).all()


@pytest.mark.parametrize("kind", [0, 1], ids=["multi", "sliced"])
def test_the_state_of_a_head_is_its_weights_alone(kind):
    head = heads([2, 4, 1])[kind]
    assert set(head.state_dict()) == {name for name, _ in head.named_parameters()}


def test_a_net_is_its_head_on_its_body():
    net = Net(mlp((4,), (6,)), MultiHead(6, [2, 3]))
    x = torch.randn(5, 4)
    assert torch.equal(net(x, 1), net.head.heads[1](net.body(x)))


@pytest.mark.parametrize("training", [True, False])
def test_measuring_features_keeps_mode_and_statistics(training):
    body = mlp((4,), (3,), batch_norm=True).train(training)
    before = {name: t.clone() for name, t in body.state_dict().items()}
    features_of(body, (4,))
    assert all(module.training is training for module in body.modules())
    assert all(torch.equal(t, before[name]) for name, t in body.state_dict().items())


def test_measuring_features_restores_the_mode_of_every_part():
    body = mlp((4,), (3,), batch_norm=True).train()
    body[3].eval()
    features_of(body, (4,))
    assert [module.training for module in body] == [True, True, True, False]


def test_measuring_features_restores_the_mode_after_an_error():
    body = mlp((4,), (3,)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        features_of(body, (5,))
    assert all(module.training for module in body.modules())


def test_a_body_that_does_not_flatten_is_refused():
    with pytest.raises(ValueError, match=r"expected shape \(2, features\) for 2 inputs, got \(2, 8, 6, 6\). Flatten"):
        features_of(nn.Conv2d(1, 8, 3), (1, 8, 8))


def test_a_vector_per_token_is_refused_for_one_label_per_example():
    with pytest.raises(
        ValueError, match=r"got \(2, 6, 4\). Return one vector per example, such as the mean over the tokens"
    ):
        features_on(nn.Embedding(9, 4), torch.zeros(2, 6, dtype=torch.int64))


def test_a_head_or_a_measure_without_its_method_is_refused():
    for base in (Head, Measure):
        with pytest.raises(TypeError, match=f"abstract class {base.__name__}"):
            base()


def test_a_body_that_gives_a_tuple_is_refused():
    with pytest.raises(ValueError, match="expected a tensor .*, got tuple"):
        features_of(nn.LSTM(3, 2), (4, 3))


def test_the_resnet_of_ctn_has_1106825_parameters():
    """The count includes a head of 85 classes."""
    assert parameters(resnet18_reduced((3, 32, 32))) + parameters(nn.Linear(160, 85)) == 1_106_825


def test_the_resnet_of_van_de_ven_has_1094770_parameters():
    """The count includes a head of 10 classes."""
    assert parameters(resnet18_vandeven((3, 32, 32))) + parameters(nn.Linear(160, 10)) == 1_094_770


def shapes_through(body, shape):
    """Return the shape of one image after every part of a sequential body."""
    x, shapes = torch.zeros(1, *shape), {}
    for name, part in body.eval().named_children():
        x = part(x)
        shapes[name] = tuple(x.shape[1:])
    return shapes


def test_the_resnet_of_ctn_halves_the_image_four_times():
    """It halves the image after the stem and in three stages."""
    assert shapes_through(resnet18_reduced((3, 32, 32)), (3, 32, 32)) == {
        "conv1": (20, 32, 32), "bn1": (20, 32, 32), "relu": (20, 32, 32), "maxpool": (20, 16, 16), "layer1": (20, 16, 16),
        "layer2": (40, 8, 8), "layer3": (80, 4, 4), "layer4": (160, 2, 2), "avgpool": (160, 1, 1), "flatten": (160,),
    }  # fmt: skip


def test_the_resnet_of_van_de_ven_halves_the_image_three_times():
    """It halves the image in three stages and not after the stem."""
    shapes = shapes_through(resnet18_vandeven((3, 32, 32)), (3, 32, 32))
    assert "maxpool" not in shapes
    assert [shapes[f"layer{i}"] for i in (1, 2, 3, 4)] == [(20, 32, 32), (40, 16, 16), (80, 8, 8), (160, 4, 4)]


def test_only_van_de_vens_last_block_gives_negative_values():
    """The last block of this ResNet has no ReLU at its end."""
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for make, ends_negative in ((resnet18_reduced, False), (resnet18_vandeven, True)):
        h, negative = x, {}
        for name, part in make((3, 16, 16)).named_children():
            h = part(h)
            negative[name] = bool((h < 0).any())
        assert [negative[f"layer{i}"] for i in (1, 2, 3)] == [False] * 3
        assert negative["layer4"] is ends_negative


def test_a_reduced_resnet_equals_torchvisions_stages():
    """The stages of torchvision's ResNet-18 at width 20 compute the same features with our weights."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            self.inplanes = 20 if planes == 64 else self.inplanes
            return super()._make_layer(block, planes * 20 // 64, blocks, stride, dilate)

    ours, theirs = resnet18_reduced((3, 32, 32)).double().eval(), Narrow(BasicBlock, [2, 2, 2, 2]).double().eval()
    stem, stages, pooling = ours[:4], ours[4:8], ours[8:]
    for a, b in zip(stages, [theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4], strict=True):
        b.load_state_dict(
            {
                name.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1"): tensor
                for name, tensor in a.state_dict().items()
            }
        )
    h = stem(torch.randn(2, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(h)))).mean((2, 3))
    torch.testing.assert_close(pooling(stages(h)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "expected"), [((1, 28, 28), 420_352), ((3, 32, 32), 543_808)])
def test_the_cnn_takes_mnist_and_cifar(shape, expected):
    body = cnn(shape)
    assert features_of(body, shape) == 128
    assert parameters(body) == expected


def test_the_cnn_has_one_pooling_per_convolution():
    """Images that are too small for the poolings are refused."""
    assert [type(p).__name__ for p in cnn((1, 8, 8), (2, 3, 4), 5, 0.1)] == 3 * ["Conv2d", "ReLU", "MaxPool2d"] + [
        "Flatten", "Linear", "ReLU", "Dropout"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="3 poolings: expected images of at least 8x8, got 4x9"):
        cnn((1, 4, 9), (2, 3, 4))
    with pytest.raises(ValueError, match=r"expected inputs \(channels, height, width\), got shape \(10,\)"):
        cnn((10,))


BODIES = {
    "mlp": (mlp, (1, 8, 8)),
    "mlp_bn": (partial(mlp, batch_norm=True), (1, 8, 8)),
    "cnn": (partial(cnn, channels=(4, 4), width=8), (1, 8, 8)),
    "resnet18_reduced": (partial(resnet18_reduced, width=2), (3, 8, 8)),
    "resnet18_vandeven": (partial(resnet18_vandeven, width=2), (1, 8, 8)),
    "torchvision": (partial(torchvision_model, name="resnet18"), (1, 32, 32)),
    "lazy": (lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(6)), (3, 2, 2)),
    "flatten_pixels": (flatten_pixels, (2, 3)),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "scenario", [Scenario(), Scenario(head="single"), Scenario("domain", "single"), Scenario("class", "single")]
)
def test_every_head_fits_every_body_and_every_body_learns(body, scenario):
    make, shape = BODIES[body]
    made, sizes = make(shape), [2, 2, 2]
    net = Net(made, scenario.build_head(features_of(made, shape), sizes))
    x, y = torch.randn(4, *shape), torch.tensor([0, 1, 0, 1])
    for task in range(3):
        outputs = net(x, task)
        assert outputs.shape == (4, 2 * (task + 1) if scenario.name == "class" else 2)
        nn.functional.cross_entropy(outputs, y).backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("densenet121", 1024), ("efficientnet_b0", 1280)],
)
def test_a_torchvision_model_gives_features_of_its_classifier(name, features):
    """The features are the inputs of the classifier that was removed."""
    assert features_of(torchvision_model((3, 32, 32), name), (3, 32, 32)) == features


def test_a_torchvision_model_is_unchanged_up_to_its_classifier():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18().eval()
    torch.manual_seed(0)
    ours, grey = torchvision_model((3, 32, 32)).eval(), torchvision_model((1, 32, 32)).eval()
    grey.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, 32, 32)
    expected = theirs(x.repeat(1, 3, 1, 1))
    assert torch.equal(theirs.fc(ours(x.repeat(1, 3, 1, 1))), expected)
    assert torch.equal(theirs.fc(grey(x)), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torchvision_model((3, 32, 32), "resnet19"), "Unknown model resnet19"),
        (
            lambda: torchvision_model((3, 32, 32), "resnet18", weights="BEST"),
            "weights=BEST: expected weights of resnet18",
        ),
        (lambda: torchvision_model((2, 32, 32)), "1 or 3 channels, got 2"),
        (lambda: torchvision_model((3, 32, 32), "squeezenet1_0"), "no linear layer to remove. Use net=module"),
        (
            lambda: module_body((3,), partial(nn.Linear, 3, 2), drop_layer="fc"),
            "drop_layer=fc: expected a part of Linear",
        ),
    ],
)
def test_a_body_that_cannot_be_built_is_named_with_a_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_module_without_a_shape_argument_is_built_without_it():
    """Its classifier is removed."""

    class Theirs(nn.Module):
        def __init__(self, width=5):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 1000)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    assert features_of(module_body((1, 8, 8), Theirs, drop_layer="fc"), (1, 8, 8)) == 5
    assert features_of(module_body((1, 8, 8), partial(nn.Conv2d, 1, 2, 3), flatten=True), (1, 8, 8)) == 72


SHORT = ("epochs=1", "data.tasks=2", "strategy=finetune", "+trainer.limit_train_batches=1")

MINE = """
from torch import nn

class OfAShape(nn.Sequential):
    def __init__(self, shape, width=3):
        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], width))

class OfNothing(nn.Sequential):
    def __init__(self, width=3):
        super().__init__(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, 1000))
"""


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        (["net=custom", "net._target_=mine_nets.OfAShape", "+net.width=4"], 64 * 4 + 4 + 2 * 50),
        (
            ["net=module", "net.module._target_=mine_nets.OfNothing", "+net.module.width=4", "net.drop_layer='3'"],
            260 + 2 * 50,
        ),
        (["net=custom"], 2 * (64 * 10 + 10)),
    ],
    ids=["shape", "no_shape", "linear"],
)
def test_a_module_by_dotted_path_is_a_body(run, tmp_path, monkeypatch, overrides, parameters):
    (tmp_path / "mine_nets.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    result = run(*SHORT, *overrides)
    assert result["net"]["parameters"] == parameters
    assert result["status"] == "partial"  # of each epoch, one batch is trained


CLASSIFIER = """
from torch import nn

class Classifier(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.layers, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU()), nn.Linear(7, classes)

    def forward(self, x):
        return self.fc(self.layers(x))

def of_a_shape(shape, classes=10):
    return Classifier(classes)
"""
MODULE = ("net=module", "net.module._target_=theirs.Classifier")


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (MODULE, "If fc is a classifier, try net.drop_layer=fc."),
        ((*MODULE, "net.flatten=true"), "If fc is a classifier, try net.drop_layer=fc."),
        ((*MODULE, "data=split_digits", "+net.module.classes=2"), "has 2 outputs, as many as there are classes"),
        ((*MODULE, "data=split_digits"), "has 10 outputs, as many as there are classes"),
        (("net=custom", "net._target_=theirs.of_a_shape"), "If fc is a classifier, return its inputs instead."),
        ((*MODULE, "net.drop_layer=fc"), None),
        ((*MODULE, "+net.module.classes=11"), None),
        (("net=mlp", "net.hidden=[10]"), None),
    ],
)
def test_a_second_classifier_is_a_warning(composed, tmp_path, monkeypatch, overrides, remedy):
    """The body has as many outputs as there are classes, and clbench adds a head."""
    (tmp_path / "theirs.py").write_text(CLASSIFIER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    cfg = composed(*overrides)
    sequence, learner, _ = build(cfg)
    warning = classifier_in_body(learner.net, sequence, cfg)
    assert warning is None if remedy is None else remedy in warning


def test_the_warning_of_a_second_classifier_is_printed(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs.py").write_text(CLASSIFIER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    run(*MODULE, "dry_run=true")
    assert "warning: the last layer fc of the net has 10 outputs" in " ".join(capsys.readouterr().out.split())


def test_a_custom_net_without_a_shape_points_to_net_module(composed, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(CLASSIFIER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    with pytest.raises(
        ConfigError, match="If it takes no shape, try net=module net.module._target_=theirs.Classifier."
    ):
        build(composed("net=custom", "net._target_=theirs.Classifier"))
    with pytest.raises(ConfigError, match="Try other options of the net, another net or other data"):
        build(composed("net=mlp", "net.hidden=[a]"))


def test_init_from_loads_the_body_of_another_run(run, composed, tmp_path):
    """The head of the run is its own."""
    run(*SHORT, "net=mlp_bn", folder="first")
    file = tmp_path / "first/checkpoints/task_1.ckpt"
    _, learner, _ = build(
        composed(*SHORT, "net=mlp_bn", "scenario=class", "data=split_digits", "batch_size=30", f"init_from={file}")
    )
    saved = torch.load(file, weights_only=True)["learner"]
    body = learner.net.body.state_dict()
    assert all(torch.equal(tensor, saved[f"net.body.{name}"]) for name, tensor in body.items())
    assert any(name.endswith("running_mean") and tensor.any() for name, tensor in body.items())
    _, fresh, _ = build(composed(*SHORT, "net=mlp_bn", "scenario=class", "data=split_digits", "batch_size=30"))
    for name, tensor in fresh.net.head.state_dict().items():
        assert torch.equal(tensor, learner.net.head.state_dict()[name])


@pytest.mark.parametrize("what", ["body", "net", "learner", "lightning"])
def test_weights_are_found_in_common_checkpoint_formats(tmp_path, what):
    net = Net(mlp((4,), (3,), batch_norm=True), MultiHead(3, [2]))
    body, of_net = net.body.state_dict(), net.state_dict()
    of_learner = {f"net.{name}": tensor for name, tensor in of_net.items()}
    saved = {"body": body, "net": of_net, "learner": of_learner, "lightning": {"state_dict": of_learner, "epoch": 3}}
    torch.save(saved[what], tmp_path / "weights.pt")
    other = mlp((4,), (3,), batch_norm=True)
    init_from(other, tmp_path / "weights.pt")
    assert all(torch.equal(tensor, body[name]) for name, tensor in other.state_dict().items())


def files(folder):
    torch.save(mlp((4,), (3,)).state_dict(), folder / "mlp.pt")
    torch.save(mlp((4,), (3,)), folder / "module.pt")
    torch.save({"accuracy": 0.5}, folder / "numbers.pt")
    (folder / "text.pt").write_text(json.dumps({}), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "body", "message"),
    [
        ("nowhere.pt", mlp((4,), (3,)), "nowhere.pt: expected a file. Try checkpoints/task_<t>.ckpt"),
        (
            "module.pt",
            mlp((4,), (3,)),
            r"objects that could run code. Save the net's state_dict\(\), not the net",
        ),
        ("text.pt", mlp((4,), (3,)), "written by another program"),
        ("numbers.pt", mlp((4,), (3,)), "expected a state_dict"),
        ("mlp.pt", mlp((5,), (3,)), r"1.weight is \(3, 4\) in the file, \(3, 5\) in the net\). Use the net and"),
        ("mlp.pt", mlp((4,), (3, 3)), "the net also has 3.weight, the net also has 3.bias"),
        ("mlp.pt", nn.Flatten(), "the file also has 1.weight"),
        ("mlp.pt", mlp((4,), (5,) * 9), "and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit_are_one_error_line(tmp_path, file, body, message):
    """The line has the file, the keys and a remedy."""
    files(tmp_path)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    with pytest.raises(ConfigError, match=message) as caught:
        init_from(body, tmp_path / file)
    assert "\n" not in str(caught.value)
    assert f"init_from={tmp_path / file}" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


def test_convolutions_and_their_importance_are_channels_last(run, composed, tmp_path):
    """This layout is faster. Only the order in memory changes, also that of importances in a resumed run."""
    options = ("net=cnn", "net.channels=[4,8]", "data=split_digits", "data.tasks=2", "steps=3", "strategy=ewc")
    run(*options)
    _, learner, strategy = build(composed(*options))
    state = torch.load(tmp_path / "run/checkpoints/task_0.ckpt", weights_only=True)
    strategy.load_state_dict({n: _contiguous(t) for n, t in state["strategy"].items()})
    looked = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for name, p in pl_module.named_parameters():
                if p.ndim == 4:
                    for tensor in (p, p.grad, strategy.penalty.anchor[name], strategy.penalty.importance[name]):
                        assert tensor.is_contiguous(memory_format=torch.channels_last)
                    looked.append(name)

    trainer([strategy, Look()], max_steps=2).fit(learner, datamodule=build(composed(*options))[0][1])
    assert len(looked) == 2 * 2
    x = torch.rand(5, 1, 8, 8)
    plain = deepcopy(learner.net)
    for part in plain.modules():
        part.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(plain(x, 0), learner.net(x, 0))


def _contiguous(value):
    return {name: t.contiguous() for name, t in value.items()} if isinstance(value, dict) else value
