"""Nets of transformers, timm, torchvision and peft, and nets that people write themselves, built small from configurations.

Nothing is downloaded. All nets are functions of one tensor, tokens or numbers, and return outputs (N, C) with C = 3. Tokens are
followed by the padding 0, so that the examples of a batch have different lengths.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from tests.importance.odd_nets import C, N, Net, Scaled, weights


class Package:
    """A package that is imported when it is used, so that the collection of tests does not take seconds longer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.name), attribute)


hf, timm, peft = Package("transformers"), Package("timm"), Package("peft")

V, T, D, S = 11, 6, 8, 32
"""Numbers of tokens and of positions, width, and size of images."""

TOKENS, SEQUENCE, FLAT, IMAGE = "tokens", (T, D), (D,), (3, S, S)


def inputs(shape: Any, n: int = N, length: int = T) -> Tensor:
    """Return inputs of ``n`` examples: ragged tokens, or numbers of a shape."""
    if shape != TOKENS:
        return torch.randn(n, *shape, dtype=torch.float64)
    x = torch.randint(1, V, (n, length))
    x[torch.arange(length) >= torch.arange(n)[:, None] % 3 + length - 2] = 0
    return x


def randomised(net: nn.Module) -> nn.Module:
    """Return ``net`` in float64 and evaluation mode, without weights and statistics at the special values of their start."""
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) / 10)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 2)
    return net


WIDTHS: dict[str, Any] = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 2 * D, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 4 * T, "num_labels": C, "pad_token_id": 0,
}  # fmt: skip
GQA = {**WIDTHS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def _logits(m: Any, x: Tensor) -> Tensor:
    return m.model(input_ids=x, attention_mask=(x != 0).long()).logits


def _without_mask(m: Any, x: Tensor) -> Tensor:
    return m.model(input_ids=x).logits


def _generation(m: Any, x: Tensor) -> Tensor:
    """Return the logits of three tokens after the last position."""
    return m.model(input_ids=x, attention_mask=(x != 0).long()).logits[:, -1, :C]


def _decoder(m: Any, x: Tensor) -> Tensor:
    mask = (x != 0).long()
    return m.model(input_ids=x, attention_mask=mask, decoder_input_ids=x[:, :3]).logits[:, -1, :C]


def classifier(kind: str, forward: Callable[[Any, Tensor], Tensor] = _logits, **options: Any) -> nn.Module:
    """Return a classifier of sequences."""
    config = getattr(hf, f"{kind}Config")(**options)
    return Net(forward, model=getattr(hf, f"{kind}ForSequenceClassification")(config))


def generator(kind: str, forward: Callable[[Any, Tensor], Tensor] = _generation, **options: Any) -> nn.Module:
    """Return a model of the next token."""
    return Net(forward, model=getattr(hf, kind)(getattr(hf, options.pop("config"))(**options)))


GPT2 = {
    "vocab_size": V,
    "n_positions": 2 * T,
    "n_embd": D,
    "n_layer": 2,
    "n_head": 2,
    "num_labels": C,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": V,
    "d_model": D,
    "d_kv": 4,
    "d_ff": 2 * D,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": V, "d_model": D, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "pad_token_id": 0,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 2 * D, "decoder_ffn_dim": 2 * D, "max_position_embeddings": 4 * T,
    "decoder_start_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1,
}  # fmt: skip


def adapted(base: Callable[[], nn.Module], config: Any) -> nn.Module:
    """Return a net whose ``model`` is frozen and adapted by peft."""
    net = base()
    net.model = peft.get_peft_model(net.model, config)  # type: ignore[arg-type]
    return net


BERT = partial(classifier, "Bert", **WIDTHS)
CLASSIFY = {"task_type": "SEQ_CLS"}
LORA = {"r": 2, "init_lora_weights": False}


def _waves(m: Any, x: Tensor) -> Tensor:
    return m.model(x).logits


def wav2vec() -> nn.Module:
    """Return a classifier of sounds: convolutions in time, convolved positions with a normed weight, attention."""
    config = hf.Wav2Vec2Config(
        **WIDTHS, conv_dim=(D, D), conv_stride=(3, 2), conv_kernel=(5, 3), num_feat_extract_layers=2, classifier_proj_size=D,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
    )  # fmt: skip
    return Net(_waves, model=hf.Wav2Vec2ForSequenceClassification(config))


def _series(m: Any, x: Tensor) -> Tensor:
    return m.model(past_values=x).prediction_logits


def patch_tst() -> nn.Module:
    """Return a classifier of time series of two channels."""
    config = hf.PatchTSTConfig(
        num_input_channels=2, context_length=12, patch_length=4, patch_stride=4, d_model=D, num_hidden_layers=1, ffn_dim=D,
        num_attention_heads=2, num_targets=C, use_cls_token=True,
    )  # fmt: skip
    return Net(_series, model=hf.PatchTSTForClassification(config))


def perceiver() -> nn.Module:
    """Return a classifier of tokens whose latent vectors attend to them."""
    config = hf.PerceiverConfig(
        num_latents=3, d_latents=D, d_model=D, num_blocks=1, num_self_attends_per_block=1, num_self_attention_heads=2,
        num_cross_attention_heads=2, max_position_embeddings=4 * T, vocab_size=V, num_labels=C, qk_channels=D, v_channels=D,
    )  # fmt: skip
    forward = lambda m, x: m.model(inputs=x, attention_mask=(x != 0).long()).logits  # noqa: E731
    return Net(forward, model=hf.PerceiverForSequenceClassification(config))


class Unet(nn.Module):
    """Convolutions down and up again, with connections between them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.GroupNorm(2, 8)
        self.last, self.head = nn.Conv2d(8, 4, 3, padding=1, padding_mode="replicate"), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.down(x))
        b = F.interpolate(F.silu(self.deep(F.max_pool2d(a, 4))), scale_factor=2, mode="bilinear")
        joint = torch.cat([a, self.up(b)], 1)
        return self.head(F.silu(self.last(self.norm(joint))).mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer over tokens, whose padding is left out if ``packed``."""

    def __init__(self, kind: Callable[..., nn.Module], packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.table, self.packed = nn.Embedding(V, D, padding_idx=0), packed
        self.layers = kind(D, D, batch_first=True, **options)
        self.head = nn.Linear(D * (2 if options.get("bidirectional") else 1), C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        if self.packed:
            lengths = (x != 0).sum(1).cpu()
            _, last = self.layers(pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False))
            return self.head(last[-1])
        return self.head(self.layers(h)[0][:, -1])


class Encoder(nn.Module):
    """Layers of torch over tokens and positions, which are learned or sines."""

    def __init__(self, has_sines: bool = False, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.table, self.place, self.batch_first = nn.Embedding(V, D), nn.Embedding(T, D), batch_first
        if has_sines:
            angles = torch.arange(T)[:, None] / 100 ** (torch.arange(D) / D)
            self.place.weight = nn.Parameter(angles.sin(), requires_grad=False)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=batch_first, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + self.place(torch.arange(x.shape[1]))
        h = self.layers(h if self.batch_first else h.transpose(0, 1), src_key_padding_mask=x == 0)
        return self.head(h.mean(1) if self.batch_first else h[0])


class Queries(nn.Module):
    """Learned queries that a decoder compares with an image, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 8, stride=8)
        self.queries, self.rows, self.columns = nn.Embedding(3, D), weights(4, D), weights(4, D)
        self.transformer = nn.Transformer(D, 2, 1, 1, 2 * D, dropout=0.0)
        self.head = nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).flatten(2).permute(2, 0, 1)
        place = (self.rows[:, None] + self.columns[None]).flatten(0, 1)[:, None]
        queries = self.queries.weight.unsqueeze(1).repeat(1, len(x), 1)
        return self.head(self.transformer(h + place, queries)).amax(0)


class Biased(nn.Module):
    """Attention with a learned bias per head and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head, self.bias = nn.Linear(D, 3 * D), nn.Linear(D, C), weights(2 * T - 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), T, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
        distances = torch.arange(T)[:, None] - torch.arange(T) + T - 1
        scores = q @ k.mT / math.sqrt(D / 2) + self.bias[distances].permute(2, 0, 1)[None]
        return self.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


class Hypernetwork(nn.Module):
    """A layer whose weights are the outputs of another net for the same example."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.start, self.head = nn.Linear(D, D * D), weights(D, D), nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        w = self.maker(x).view(-1, D, D) + self.start
        return self.head(torch.tanh(torch.einsum("noi,ni->no", w, x)))


class GeneratedWeights(nn.Module):
    """A layer whose weights come from a net of an embedding of the layer, without the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.head = weights(4), nn.Linear(D, C)
        self.maker = nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, D * D))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, self.maker(self.code).view(D, D))))


class Mixture(nn.Module):
    """All experts for all examples, weighted by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.w, self.b, self.head = nn.Linear(D, 3), weights(3, D, D), weights(3, D), nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.tanh(torch.einsum("ni,eio->neo", x, self.w) + self.b)
        return self.head((self.gate(x).softmax(1)[..., None] * each).sum(1))


class Graphs(nn.Module):
    """Convolutions on a graph per example: the first T columns are its adjacency matrix, the others its features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(D - T, D), nn.Linear(D, D), nn.Linear(D, C)
        self.eps = weights()

    def forward(self, x: Tensor) -> Tensor:
        adjacency, h = (x[..., :T] > 0).to(x.dtype), x[..., T:]
        adjacency = adjacency / adjacency.sum(2, keepdim=True).clamp(min=1)
        for layer in (self.first, self.second):
            h = torch.relu(adjacency @ layer(h) + (1 + self.eps) * layer(h))
        return self.head(h.amax(1))


class DeepSets(nn.Module):
    """A sum over the elements of a set, of which some are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))
        self.all = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.all((self.each(x) * (x[..., :1] > 0)).sum(1))


class Inducing(nn.Module):
    """Learned points that attend to a set, and the set to them, with time first."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.head = weights(2, 1, D), nn.Linear(D, C)
        self.first, self.second = nn.MultiheadAttention(D, 2), nn.MultiheadAttention(D, 2, add_bias_kv=True)

    def forward(self, x: Tensor) -> Tensor:
        x, unused = x.transpose(0, 1), x[..., 0] > 1
        h, _ = self.first(self.points.expand(-1, x.shape[1], -1), x, x, key_padding_mask=unused)
        h, _ = self.second(x, h, h, need_weights=False)
        return self.head(h.mean(0))


class Causal(nn.Module):
    """Dilated convolutions in time with gates, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=d) for d in (1, 2))
        self.first, self.skip, self.head = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.first(x), 0.0
        for layer in self.layers:
            a, b = layer(F.pad(h, (layer.dilation[0], 0))).chunk(2, 1)
            h = h + torch.tanh(a) * torch.sigmoid(b)
            total = total + self.skip(h)
        return self.head(torch.relu(total)[..., -1])


class Flow(nn.Module):
    """A differential equation in four steps of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head, self.rate = nn.Sequential(nn.Linear(D + 1, D), nn.Tanh()), nn.Linear(D, C), weights()

    def forward(self, x: Tensor) -> Tensor:
        for t in range(4):
            x = x + self.rate.exp() * self.f(torch.cat([x, torch.full_like(x[:, :1], t / 4)], 1)) / 4
        return self.head(x)


class Splines(nn.Module):
    """A function per pair of input and output, a weighted sum of bumps, as in a Kolmogorov-Arnold network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weights(D, D, 4), weights(C, D, 4)
        self.register_buffer("centres", torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        for w in (self.a, self.b):
            x = torch.einsum("nig,oig->no", torch.exp(-((x[..., None] - self.centres) ** 2)), w)
        return x


class Modulated(nn.Module):
    """Features scaled and shifted by a condition, in sines."""

    def __init__(self) -> None:
        super().__init__()
        self.condition, self.layer, self.head = nn.Linear(D, 2 * D), nn.Linear(D, D), nn.Linear(D, C)
        self.norm, self.omega = nn.LayerNorm(D, elementwise_affine=False), weights(D)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(x.mean(1)).chunk(2, 1)
        h = torch.sin(self.omega * self.layer(self.norm(x)))
        return self.head((h * (1 + scale[:, None]) + shift[:, None]).mean(1))


class Twice(nn.Module):
    """A block that is used for two inputs and once more for their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.TransformerEncoderLayer(D, 2, D, dropout=0.0, batch_first=True), nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x) + self.block(x.flip(1))).mean(1))


class Bottleneck(nn.Module):
    """Frozen layers with small trainable ones between them, and trainable biases and norms."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, D, dropout=0.0, batch_first=True)
        self.body, self.down, self.up, self.head = layer, nn.Linear(D, 2), nn.Linear(2, D), nn.Linear(D, C)
        for name, p in layer.named_parameters():
            p.requires_grad_("norm" in name or "bias" in name)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head((h + self.up(F.gelu(self.down(h)))).mean(1))


def reparametrised() -> nn.Module:
    """Return convolutions with normed weights of each kind."""
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3, stride=4)),
        nn.ELU(),
        parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, groups=2)),
        nn.ELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(16, D)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(D, C), dim=1),
    )


def function() -> nn.Module:
    """Return a net over positions with a function that has its own backward pass."""
    return Net(
        lambda m, x: m.head(Scaled.apply(m.body(x.mean(1)), m.w)),
        body=nn.Linear(D, D),
        head=nn.Linear(D, C),
        w=weights(D),
    )


def convolutions() -> nn.Module:
    """Return a small residual net whose convolutions have names that peft finds."""
    forward = lambda m, x: m.model(x)  # noqa: E731
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    return Net(forward, model=nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, C)))


def image(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that builds a net of timm."""
    return lambda: timm.create_model(name, num_classes=C, **options)


VIT = {"img_size": S, "patch_size": 8, "embed_dim": D, "depth": 2, "num_heads": 2}


def resnet_v2() -> nn.Module:
    return timm.models.resnetv2.ResNetV2(
        layers=[1, 1],
        channels=[8, 16],
        num_classes=C,
        stem_chs=8,
        stem_type="fixed",
        norm_layer=partial(timm.layers.GroupNormAct, num_groups=2),
    )


def nfnet() -> nn.Module:
    config = timm.models.nfnet.NfCfg(
        depths=(1, 1), channels=(16, 16), stem_type="3x3", stem_chs=8, group_size=8, num_features=16
    )
    return timm.models.nfnet.NormFreeNet(config, num_classes=C)


def regnet() -> nn.Module:
    config = timm.models.regnet.RegNetCfg(depth=4, w0=8, wa=8.0, wm=1.3, group_size=8, se_ratio=0.25)
    return timm.models.regnet.RegNet(config, num_classes=C)


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=C)


def mobilenet() -> nn.Module:
    block = partial(torchvision.models.mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [block(8, 3, 16, 8, True, "RE", 2), block(8, 5, 16, 8, False, "HS", 1)]
    return torchvision.models.MobileNetV3(blocks, 16, num_classes=C)


def efficientnet() -> nn.Module:
    block = torchvision.models.efficientnet.MBConvConfig
    blocks = [block(1, 3, 1, 8, 8, 1), block(4, 5, 2, 8, 16, 1)]
    return torchvision.models.EfficientNet(blocks, 0.0, num_classes=C, last_channel=16)


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        [4, 4], D, [2, 2], [2, 2], [2, 2], num_classes=C, stochastic_depth_prob=0.0
    )


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(S, 8, 2, 2, D, 2 * D, num_classes=C)


ZOO: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "GPT-2": (lambda: classifier("GPT2", **GPT2), TOKENS),
    "GPT-2, tied head": (lambda: generator("GPT2LMHeadModel", config="GPT2Config", **GPT2), TOKENS),
    "BERT": (BERT, TOKENS),
    "DistilBERT": (
        lambda: classifier(
            "DistilBert",
            vocab_size=V,
            dim=D,
            n_layers=2,
            n_heads=2,
            hidden_dim=D,
            num_labels=C,
            sinusoidal_pos_embds=True,
        ),
        TOKENS,
    ),
    "RoBERTa": (lambda: classifier("Roberta", **WIDTHS), TOKENS),
    "ALBERT": (lambda: classifier("Albert", **WIDTHS, embedding_size=4), TOKENS),
    "DeBERTa": (
        lambda: classifier(
            "DebertaV2",
            **WIDTHS,
            relative_attention=True,
            max_relative_positions=4,
            pos_att_type=["p2c", "c2p"],
            conv_kernel_size=3,
        ),
        TOKENS,
    ),
    "Llama": (lambda: classifier("Llama", **GQA), TOKENS),
    "Mistral": (lambda: classifier("Mistral", **GQA, sliding_window=3), TOKENS),
    "Qwen2": (lambda: classifier("Qwen2", **GQA), TOKENS),
    "Gemma 2": (lambda: classifier("Gemma2", **GQA, sliding_window=3), TOKENS),
    "Mixtral": (
        lambda: classifier(
            "Mixtral", **GQA, num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager"
        ),
        TOKENS,
    ),
    "OPT": (lambda: classifier("OPT", **WIDTHS, ffn_dim=D, word_embed_proj_dim=4), TOKENS),
    "GPT-NeoX": (lambda: classifier("GPTNeoX", **WIDTHS), TOKENS),
    "BLOOM": (
        lambda: classifier("Bloom", vocab_size=V, hidden_size=D, n_layer=2, n_head=2, num_labels=C, pad_token_id=0),
        TOKENS,
    ),
    "Mamba": (
        lambda: generator(
            "MambaForCausalLM",
            config="MambaConfig",
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=1,
            state_size=3,
            time_step_rank=2,
        ),
        TOKENS,
    ),
    "T5": (lambda: generator("T5ForConditionalGeneration", _decoder, config="T5Config", **T5), TOKENS),
    "BART": (lambda: generator("BartForConditionalGeneration", _decoder, config="BartConfig", **BART), TOKENS),
    "Marian": (lambda: generator("MarianMTModel", _decoder, config="MarianConfig", **BART), TOKENS),
    "Perceiver": (perceiver, TOKENS),
    "wav2vec 2.0": (wav2vec, (60,)),
    "PatchTST": (patch_tst, (12, 2)),
    "LoRA of BERT": (
        lambda: adapted(BERT, peft.LoraConfig(**LORA, target_modules=["query", "value"], **CLASSIFY)),
        TOKENS,
    ),
    "LoRA of GPT-2": (
        lambda: adapted(
            lambda: classifier("GPT2", **GPT2),
            peft.LoraConfig(**LORA, target_modules=["c_attn"], fan_in_fan_out=True, **CLASSIFY),
        ),
        TOKENS,
    ),
    "LoRA of tables": (
        lambda: adapted(
            BERT, peft.LoraConfig(**LORA, target_modules=["word_embeddings", "position_embeddings"], **CLASSIFY)
        ),
        TOKENS,
    ),
    "LoRA of convolutions": (lambda: adapted(convolutions, peft.LoraConfig(**LORA, target_modules=["0", "3"])), IMAGE),
    "DoRA": (
        lambda: adapted(BERT, peft.LoraConfig(**LORA, target_modules=["query"], use_dora=True, **CLASSIFY)),
        TOKENS,
    ),
    "LoHa": (
        lambda: adapted(BERT, peft.LoHaConfig(r=2, target_modules=["query", "value"], init_weights=False, **CLASSIFY)),
        TOKENS,
    ),
    "IA3": (
        lambda: adapted(
            BERT,
            peft.IA3Config(
                target_modules=["key", "dense"], feedforward_modules=["dense"], init_ia3_weights=False, **CLASSIFY
            ),
        ),
        TOKENS,
    ),
    "prompt tuning": (lambda: adapted(BERT, peft.PromptTuningConfig(num_virtual_tokens=2, **CLASSIFY)), TOKENS),
    "p-tuning": (
        lambda: adapted(BERT, peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=D, **CLASSIFY)),
        TOKENS,
    ),
    "prefix tuning": (
        lambda: adapted(
            lambda: generator("GPT2LMHeadModel", config="GPT2Config", **GPT2),
            peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        ),
        TOKENS,
    ),
    "ViT": (image("vit_tiny_patch16_224", **VIT), IMAGE),
    "ViT with layer scale and registers": (
        image("vit_tiny_patch16_224", **VIT, init_values=0.1, qk_norm=True, reg_tokens=2, global_pool="avg"),
        IMAGE,
    ),
    "ViT of torchvision": (vision_transformer, IMAGE),
    "DeiT with distillation": (image("deit_tiny_distilled_patch16_224", **VIT), IMAGE),
    "BEiT": (image("beit_base_patch16_224", **VIT), IMAGE),
    "Swin": (swin, IMAGE),
    "Mixer": (lambda: timm.models.MlpMixer(C, S, patch_size=8, num_blocks=2, embed_dim=D), IMAGE),
    "ConvNeXt": (image("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), IMAGE),
    "EfficientNet": (efficientnet, IMAGE),
    "ResNet-V2": (resnet_v2, IMAGE),
    "NFNet": (nfnet, IMAGE),
    "RegNet": (regnet, IMAGE),
    "MobileNetV3": (mobilenet, IMAGE),
    "DenseNet": (densenet, IMAGE),
    "U-Net": (Unet, IMAGE),
    "stacked LSTM, both directions": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), TOKENS),
    "stacked GRU": (lambda: Recurrent(nn.GRU, num_layers=2), TOKENS),
    "packed GRU": (lambda: Recurrent(nn.GRU, packed=True), TOKENS),
    "encoder": (Encoder, TOKENS),
    "encoder, time first": (lambda: Encoder(True, False, norm_first=True, activation="gelu", bias=False), TOKENS),
    "queries": (Queries, IMAGE),
    "attention with biases": (Biased, SEQUENCE),
    "inducing points": (Inducing, SEQUENCE),
    "hypernetwork": (Hypernetwork, FLAT),
    "generated weights": (GeneratedWeights, FLAT),
    "mixture of experts": (Mixture, FLAT),
    "graphs": (Graphs, SEQUENCE),
    "deep sets": (DeepSets, SEQUENCE),
    "causal convolutions": (Causal, (2, 8)),
    "differential equation": (Flow, FLAT),
    "splines": (Splines, FLAT),
    "modulation": (Modulated, SEQUENCE),
    "block used twice": (Twice, SEQUENCE),
    "adapter": (Bottleneck, SEQUENCE),
    "reparametrised layers": (reparametrised, IMAGE),
    "custom function": (function, SEQUENCE),
    "policy": (lambda: nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, C)), FLAT),
}
