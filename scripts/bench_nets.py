"""The networks of ``bench_importance.py``: their layers, inputs and batch sizes. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clbench.nets import cnn, mlp, resnet18_reduced

VOCABULARY, LENGTH, WIDTH = 2000, 64, 128


class Net(NamedTuple):
    """A network of the benchmark.

    Attributes:
        build: Returns the network for a number of classes and its width, small if the second argument is True.
        inputs: Returns that number of random inputs.
        ours: Batch size of the importance.
        plain: Batch size of the plain pass.
    """

    build: Callable[[int, bool], nn.Module]
    inputs: Callable[[int], Tensor]
    ours: int = 16
    plain: int = 16


class Logits(nn.Module):
    """A model of transformers as a function of token numbers."""

    def __init__(self, model: nn.Module, **arguments: object) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, **self.arguments).logits  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent layer over embedded tokens, with a linear layer on its last state."""

    def __init__(self, layer: type[nn.RNNBase], width: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.layer = layer(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.table(x))[0][:, -1])  # type: ignore[no-any-return]


def with_head(body: nn.Sequential, features: int, classes: int) -> nn.Module:
    return nn.Sequential(*body, nn.Linear(features, classes))


def own(name: str) -> Callable[[int, bool], nn.Module]:
    """Return the builder of a network of clbench."""

    def build(classes: int, tiny: bool) -> nn.Module:
        if name == "mlp":
            return with_head(mlp((1, 28, 28), (20, 20) if tiny else (400, 400)), 20 if tiny else 400, classes)
        if name == "cnn":
            small = cnn((3, 32, 32), (4, 8), 16) if tiny else cnn((3, 32, 32))
            return with_head(small, 16 if tiny else 128, classes)
        return with_head(resnet18_reduced((3, 32, 32), 4 if tiny else 20), 32 if tiny else 160, classes)

    return build


def transformer(name: str, length: int = LENGTH, width: int = WIDTH) -> Callable[[int, bool], nn.Module]:
    """Return the builder of a model of transformers with two layers, from its configuration."""

    def build(classes: int, tiny: bool) -> nn.Module:
        import transformers

        size = 8 if tiny else width
        common = {"vocab_size": VOCABULARY, "num_labels": classes, "pad_token_id": 0}
        if name == "bert":
            config = transformers.BertConfig(
                hidden_size=size,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=4 * size,
                max_position_embeddings=length,
                **common,
            )
            return Logits(transformers.BertForSequenceClassification(config))
        if name == "gpt2":
            sizes = {"n_embd": size, "n_layer": 2, "n_head": 2, "n_positions": length}
            config = transformers.GPT2Config(bos_token_id=1, eos_token_id=1, **sizes, **common)
            return Logits(transformers.GPT2ForSequenceClassification(config))
        config = transformers.LlamaConfig(
            hidden_size=size,
            intermediate_size=8 * size // 3,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=length,
            **common,
        )
        return Logits(transformers.LlamaForSequenceClassification(config), use_cache=False)

    return build


def vision(name: str) -> Callable[[int, bool], nn.Module]:
    """Return the builder of a model of torchvision or timm for 3x64x64 images, 64 patches."""

    def build(classes: int, tiny: bool) -> nn.Module:
        import timm
        import torchvision

        size = 16 if tiny else WIDTH
        if name == "vit_torchvision":
            return torchvision.models.VisionTransformer(64, 8, 2, 4, size, 4 * size, num_classes=classes)
        if name == "vit_timm":
            options = {"img_size": 64, "patch_size": 8, "depth": 2, "embed_dim": size, "num_heads": 4}
            return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **options)  # type: ignore[no-any-return]
        if name == "mixer":
            return timm.models.MlpMixer(img_size=64, patch_size=8, num_blocks=2, embed_dim=size, num_classes=classes)  # type: ignore[no-any-return]
        if name == "convnext":
            dims = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)} if tiny else {}
            return timm.create_model("convnext_atto", num_classes=classes, **dims)  # type: ignore[no-any-return]
        return torchvision.models.efficientnet_b0(num_classes=classes)

    return build


def images(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def tokens(length: int = LENGTH) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(2, VOCABULARY, (n, length))


NETS = {
    "mlp": Net(own("mlp"), images(1, 28, 28), ours=1000, plain=128),
    "cnn": Net(own("cnn"), images(3, 32, 32), ours=1000, plain=128),
    "resnet18_reduced": Net(own("resnet18_reduced"), images(3, 32, 32), ours=1000, plain=128),
    **{name: Net(transformer(name), tokens()) for name in ("bert", "gpt2", "llama")},
    **{
        name: Net(vision(name), images(3, 64, 64))
        for name in ("vit_timm", "vit_torchvision", "mixer", "convnext", "efficientnet")
    },
    "lstm": Net(lambda classes, tiny: Recurrent(nn.LSTM, 8 if tiny else WIDTH, classes), tokens()),
    "gru": Net(lambda classes, tiny: Recurrent(nn.GRU, 8 if tiny else WIDTH, classes), tokens()),
    # growth with the length, the width and the batch
    **{f"bert_{length}_tokens": Net(transformer("bert", length), tokens(length)) for length in (16, 256)},
    **{f"bert_width_{width}": Net(transformer("bert", width=width), tokens()) for width in (64, 256)},
    **{f"bert_batch_{size}": Net(transformer("bert"), tokens(), ours=size, plain=size) for size in (4, 64)},
}
"""The networks by name."""

OWN = ("mlp", "cnn", "resnet18_reduced")
"""The networks of clbench."""
