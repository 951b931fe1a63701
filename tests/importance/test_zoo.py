"""Nets as they are used today compared with the loops of tests/references.py in float64, and how each was measured."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.importance import fisher, fisher_and_error, kronecker_fisher, mas
from tests import references
from tests.conftest import others_slow
from tests.importance import zoo
from tests.importance.odd_nets import C, N
from tests.importance.test_odd_nets import close

pytestmark = [
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("transformers", "timm", "peft")), reason="needs the extra models"
    ),
    pytest.mark.filterwarnings("ignore"),  # of these packages
]

WITHOUT_RULE = {"custom function": ("7.5 %", "ScaledBackward")}
"""Nets with an operation that has no rule: the share of the parameters, and its name."""

ONE_AT_A_TIME = {"Mixtral": "the sizes", "packed GRU": "the operations depend on the number of examples"}
"""Nets in which the examples cannot be located, and the reason. Mixtral gives each expert as many rows as choose it."""

FAST = ("GPT-2, tied head", "BERT", "Llama", "T5", "LoRA of BERT", "ViT", "ConvNeXt", "stacked LSTM, both directions")

RAGGED = (
    "GPT-2", "RoBERTa", "DeBERTa", "Llama", "Mistral", "OPT", "BLOOM", "Mamba", "T5", "BART", "LoRA of BERT", "prompt tuning",
    "packed GRU", "encoder",
)  # fmt: skip
"""Nets for batches that are padded to different lengths."""

nets = pytest.mark.parametrize("name", others_slow(list(zoo.ZOO), *FAST))


@pytest.fixture
def _no_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float64 what models cast to float32: norms, rotations and softmax."""
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    make, shape = zoo.ZOO[name]
    return zoo.randomised(make()), zoo.inputs(shape), torch.randint(0, C, (N,))


def test_the_zoo_is_large() -> None:
    assert len(zoo.ZOO) >= 60
    assert {*WITHOUT_RULE, *ONE_AT_A_TIME, *FAST, *RAGGED} <= set(zoo.ZOO)


@nets
@pytest.mark.usefixtures("_no_float32")
def test_importances_equal_the_loop_over_examples(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the rules alone, unless the log names the share and the reason."""
    net, x, y = built(name)
    with caplog.at_level(logging.WARNING, "clbench"):
        close(fisher(net, [(x, y)], labels="empirical"), references.fisher(net, x, y, "empirical"))
    if name in WITHOUT_RULE:
        assert all(part in caplog.text for part in WITHOUT_RULE[name])
    elif name in ONE_AT_A_TIME:
        assert "one at a time" in caplog.text and ONE_AT_A_TIME[name] in caplog.text
    else:
        assert not [record for record in caplog.records if record.name.startswith("clbench")]
    close(fisher(net, [(x, y)]), references.fisher(net, x, y))
    close(mas(net, [(x, y)]), references.mas(net, x))


@pytest.mark.slow
@pytest.mark.usefixtures("_no_float32")
@pytest.mark.parametrize("name", zoo.ZOO)
def test_errors_and_predicted_labels_equal_the_loop(name: str) -> None:
    net, x, y = built(name)
    _, error = fisher_and_error(net, [(x, y)], labels="predicted")
    values = references.per_example(net, x, y, "predicted", "cross_entropy")
    close(fisher(net, [(x[:3],), (x[3:],)], labels="predicted"), references.mean(values))
    close(error, references.standard_error(values, N), 1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_float32")
@pytest.mark.parametrize(
    "name", ["GPT-2, tied head", "Qwen2", "LoRA of tables", "Swin", "DenseNet", "Mixtral", "mixture of experts"]
)
def test_a_fisher_batch_of_all_examples_squares_the_mean(name: str) -> None:
    net, x, y = built(name)
    gradients = references.gradients(net, F.cross_entropy(net(x), y))
    expected = {key: g.square() for key, g in gradients.items()}
    close(fisher(net, [(x, y)], labels="empirical", fisher_batch=N), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_float32")
@pytest.mark.parametrize("name", RAGGED)
def test_batches_may_be_padded_to_different_lengths(name: str) -> None:
    """The last batch is a single example."""
    net, _, _ = built(name)
    xs = [zoo.inputs(zoo.TOKENS, n, length) for n, length in ((4, 5), (6, zoo.T), (3, 4), (5, 5), (1, zoo.T))]
    batches = [(x, torch.randint(0, C, (len(x),))) for x in xs]
    values = [v for x, y in batches for v in references.per_example(net, x, y, "empirical", "cross_entropy")]
    close(fisher(net, batches, labels="empirical"), references.mean(values))


@pytest.mark.parametrize(
    "name", others_slow(["BERT", "GPT-2", "LoRA of BERT", "T5", "ViT", "ConvNeXt", "DenseNet"], "BERT")
)
@pytest.mark.usefixtures("_no_float32")
def test_kronecker_factors_equal_the_loop_over_positions(name: str) -> None:
    net, x, y = built(name)
    factors = {
        layer.weight: pair for layer, pair in kronecker_fisher(net, [(x, y)], labels="empirical").factors.items()
    }
    wanted = references.kronecker(net, x, y, "empirical")
    both = factors.keys() & wanted.keys()
    assert both
    for weight in both:
        for found, expected in zip(factors[weight], wanted[weight], strict=True):
            torch.testing.assert_close(found, expected.to(found), rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("name", others_slow(["BERT", "Llama", "LoRA of GPT-2"], "BERT"))
@pytest.mark.usefixtures("_no_float32")
def test_a_model_of_transformers_takes_batches_of_its_tokenizer(name: str) -> None:
    def outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]

    net, x, y = built(name)
    batch = {"input_ids": x, "attention_mask": (x != 0).long(), "labels": y}
    result = fisher(net.model, [batch], labels="empirical", outputs=outputs)  # type: ignore[arg-type]
    close({f"model.{key}": value for key, value in result.items()}, references.fisher(net, x, y, "empirical"))


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_float32_is_measured_as_float64(name: str, caplog: pytest.LogCaptureFixture) -> None:
    net, x, y = built(name)
    expected = fisher(net, [(x, y)], labels="empirical")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "clbench"):
        result = fisher(net.float(), [(x.float() if x.is_floating_point() else x, y)], labels="empirical")
    assert bool(caplog.records) == (name in WITHOUT_RULE or name in ONE_AT_A_TIME)
    close({key: value.double() for key, value in result.items()}, expected, 1e-5)
