"""Models of transformers as bodies: tokens, images, saved models, and errors."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.importance import fisher
from clbench.nets import hf_model
from tests import references

transformers = pytest.importorskip("transformers")

N, T, VOCABULARY, WIDTH = 3, 5, 20, 8
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DECODERS = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": VOCABULARY},
    "llama": {"model_type": "llama", **SIZES, "vocab_size": VOCABULARY},
}
ENCODERS = {
    "bert": {"model_type": "bert", **SIZES, "vocab_size": VOCABULARY},
    "roberta": {"model_type": "roberta", **SIZES, "vocab_size": VOCABULARY},
}
VIT = {"model_type": "vit", **SIZES, "patch_size": 4}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
TEXT = {**DECODERS, **ENCODERS}


def tokens() -> Tensor:
    return torch.randint(2, VOCABULARY, (N, T), generator=torch.Generator().manual_seed(0))


def body(config: dict[str, object], shape: tuple[int, ...] = (T,)) -> nn.Module:
    torch.manual_seed(0)
    return hf_model(shape, config=config).eval()


@pytest.mark.parametrize("name", TEXT)
def test_features_are_those_of_the_last_layer(name):
    net, x = body(TEXT[name]), tokens()
    assert torch.equal(net(x), net.model(x, attention_mask=torch.ones_like(x)).last_hidden_state)
    assert net(x.to(torch.uint8)).shape == (N, T, WIDTH)


@pytest.mark.parametrize("name", TEXT)
def test_only_an_encoder_sees_later_tokens(name):
    net, x = body(TEXT[name]), tokens()
    changed = x.clone()
    changed[:, -1] = 2 + (changed[:, -1] + 1) % (VOCABULARY - 2)
    is_same = torch.allclose(net(x)[:, :-1], net(changed)[:, :-1], atol=1e-6)
    assert is_same == (name in DECODERS)


@pytest.mark.parametrize("config", TEXT.values(), ids=TEXT)
def test_every_weight_is_used(config):
    """A pooling layer without a gradient would fail in distributed training."""
    net = body(config)
    net(tokens()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("padding", [0, None])
def test_a_padding_token_is_trained_only_if_it_is_null(padding):
    net = body({**ENCODERS["bert"], "pad_token_id": padding})
    net(torch.zeros(N, T, dtype=torch.long)).square().sum().backward()
    gradient = net.model.get_input_embeddings().weight.grad
    assert gradient is not None and bool(gradient[0].any()) == (padding is None)


@pytest.mark.parametrize(("config", "features"), [(VIT, WIDTH), (RESNET, 16)], ids=["vit", "resnet"])
def test_images_have_pooled_features(config, features):
    net, x = body(config, (1, 8, 8)), torch.randn(N, 1, 8, 8)
    assert net(x).shape == (N, features)
    assert torch.equal(net(x), net.model(x).pooler_output.flatten(1))


def test_options_in_the_configuration_come_before_the_shape():
    assert body(VIT, (3, 8, 12)).model.config.image_size == [8, 12]
    assert body({**VIT, "image_size": 16}, (3, 8, 8)).model.config.image_size == 16


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_importance_equals_the_loop_over_examples(name):
    net = nn.Sequential(body(TEXT[name]), nn.Linear(WIDTH, VOCABULARY)).double().eval()
    x, y = tokens(), tokens().flip(0)
    expected = []
    for i in range(N):
        found = references.gradients(net, F.cross_entropy(net(x[i : i + 1])[0], y[i], reduction="sum"))
        expected.append({key: g.square() for key, g in found.items()})
    result = fisher(net, [(x, y)], labels="empirical")
    for key, value in references.mean(expected).items():
        torch.testing.assert_close(result[key], value, rtol=1e-9, atol=1e-12)


def test_a_saved_model_is_loaded_without_the_network(tmp_path, monkeypatch):
    """In float32 and in training mode, although it was saved in bfloat16 and transformers returns it in evaluation mode."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = body(DECODERS["gpt2"]).model.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = hf_model((T,), name=str(tmp_path))
    assert loaded.model.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value.float()), key


def test_a_vit_is_trained_by_the_command(run):
    sizes = ",".join(f"{key}:{value}" for key, value in VIT.items())
    result = run("net=hf", f"net.config={{{sizes}}}", "data=split_digits", "data.tasks=2", "steps=2", "strategy=ewc")
    assert result["status"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"net.name=None, net.config=None: expected one of them. Try net.config=\{model_type: gpt2, n_layer: 2\}"),
        ({"name": "a", "config": VIT}, "net.name=a, net.config=.*: expected one of them"),
        ({"config": {"n_layer": 2}}, "net.config.model_type=None: expected an architecture of transformers"),
        ({"config": {"model_type": "gptt2"}}, r"net.config.model_type=gptt2: .* Did you mean gpt2\?"),
        ({"config": {"model_type": "gpt2", "n_layers": 2}}, r"net.config.n_layers: expected .* of gpt2. Did you mean n_layer\?"),
        ({"config": {"model_type": "gpt2", "n_layer": "two"}}, "could not construct gpt2 .*Field 'n_layer' expected int"),
        ({"config": {**DECODERS["gpt2"], "n_head": 3}}, "could not construct gpt2 .*must be divisible by num_heads"),
        ({"config": VIT}, r"expected an encoder or a decoder .* got the ViTModel of pixel_values for inputs \(5,\)"),
        ({"config": {"model_type": "t5", "d_model": 8, "num_layers": 1}}, "got the encoder-decoder T5Model of input_ids"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        hf_model((T,), **arguments)
    assert "\n" not in str(caught.value)


def test_tokens_that_are_not_integers_are_refused():
    with pytest.raises(ValueError, match="net=hf: expected integer tokens"):
        body(DECODERS["gpt2"])(torch.zeros(N, T))


def test_a_model_that_is_not_available_is_one_line(composed, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("no-such/model", str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(
            ConfigError, match="net.name=.*: transformers could not load the model .* set HF_HOME"
        ) as caught:
            build(composed("net=hf", f"net.name={name}"))
        assert "\n" not in str(caught.value)


def test_without_transformers_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ConfigError, match=r'net=hf needs the package transformers. Try pip install "clbench\[models\]"'
    ):
        hf_model((T,), config=VIT)
