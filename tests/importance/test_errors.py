"""Every mistake of a user is reported in one line, with value, rule and remedy."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from clbench.importance import check_options, fisher, fisher_and_error, mas

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
NET = nn.Linear(4, 3)
ONE = nn.Linear(4, 1)
INFINITE = nn.Linear(4, 3)
nn.init.constant_(INFINITE.bias, torch.inf)


class Coupled(nn.Linear):
    """Subtracts the mean of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        return z - z.mean(0)


class Noisy(nn.Linear):
    """Applies dropout in evaluation mode too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(x, 0.5))


class Optional(nn.Linear):
    """Takes targets under two names."""

    def forward(self, x: torch.Tensor, y: Any = None, labels: Any = None) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)


MISTAKES: list[tuple[str, nn.Module, Any, dict[str, Any]]] = [
    (r"samples=0: expected an integer >= 1", NET, [(X, Y)], {"samples": 0}),
    (r"samples=-3: expected an integer >= 1", NET, [(X, Y)], {"samples": -3}),
    (r"samples=2\.5", NET, [(X, Y)], {"samples": 2.5}),
    (r"samples=7: expected at most 6.*Use samples=6", NET, [(X, Y)], {"samples": 7}),
    (r"have 0 examples", NET, [], {}),
    (r"have 0 examples", NET, [(X[:0], Y[:0])], {"samples": 2}),
    (r"labels=true: expected one of exact", NET, [(X, Y)], {"labels": "true"}),
    (r"loss=hinge: expected one of", NET, [(X, Y)], {"loss": "hinge"}),
    (r"label_samples=0", NET, [(X, Y)], {"labels": "sample", "label_samples": 0}),
    (r"fisher_batch=0", NET, [(X, Y)], {"labels": "sample", "fisher_batch": 0}),
    (r"chunk=0", NET, [(X, Y)], {"chunk": 0}),
    (r"exactly 1/8 .*divide lam by 8", NET, [(X, Y)], {"fisher_batch": 8}),
    (r"labels=predicted with loss=mse", NET, [(X, X)], {"labels": "predicted", "loss": "mse"}),
    (r"labels=weighted with loss=mse: expected loss=cross", NET, [(X, X)], {"labels": "weighted", "loss": "mse"}),
    (r"reversed with loss=a function", NET, [(X, Y)], {"labels": "reversed", "loss": nn.functional.cross_entropy}),
    (r"fisher_batch=2 with labels=weighted: expected 1", NET, [(X, Y)], {"labels": "weighted", "fisher_batch": 2}),
    (r"labels=reversed needs targets", NET, [X], {"labels": "reversed"}),
    (r"target 3: expected 0 to 2", NET, [(X, Y + 1)], {"labels": "weighted"}),
    (
        r"labels=reversed over 2 positions: expected one label",
        NET,
        [(torch.randn(6, 2, 4), Y[:, None].expand(6, 2))],
        {"labels": "reversed"},
    ),
    (r"target 5: expected 0 to 2", NET, [(X, Y), (X, Y.clamp(min=2) + 3)], {"labels": "empirical"}),
    (r"target 3: expected 0 to 2", NET, [(X, Y + 1)], {"labels": "empirical"}),
    (r"no example has a target that counts", NET, [(X, Y.clone().fill_(-100))], {"labels": "empirical"}),
    (r"target -1: expected 0 to 2", NET, [(X, Y.clone().fill_(-1))], {"labels": "empirical"}),
    (r"class indices.*shape \(6, 1\)", NET, [(X, Y[:, None])], {"labels": "empirical"}),
    (r"class indices.*dtype torch.float32", NET, [(X, Y.float())], {"labels": "empirical"}),
    (r"needs targets, but the batches have none", NET, [X], {"labels": "empirical"}),
    (r"the shape of the outputs, \(6, 3\), got shape \(6,\)", NET, [(X, Y)], {"loss": "binary_cross_entropy"}),
    (
        r"target 0.5: expected 0 or 1",
        ONE,
        [(X, Y.clamp(max=1) / 2)],
        {"loss": "binary_cross_entropy", "labels": "empirical"},
    ),
    (r"target 2: expected 0 or 1", ONE, [(X, Y)], {"loss": "binary_cross_entropy", "labels": "empirical"}),
    (
        r"expected the shape of the outputs, \(6, 1\), got shape \(6, 2\)",
        ONE,
        [(X, X[:, :2])],
        {"loss": "binary_cross_entropy", "labels": "empirical"},
    ),
    (r"over 1 output is always zero", ONE, [(X, Y)], {}),
    (r"expected the shape of the outputs, \(6, 3\)", NET, [(X, X)], {"loss": "mse", "labels": "empirical"}),
    (r"\(6, 2, 3\) with targets \(6,\): expected targets \(6, 2\).*class_dim", NET, [(torch.randn(6, 2, 4), Y)], {}),
    (r"\(6, 2, 3\) with no targets.*class_dim", NET, [torch.randn(6, 2, 4)], {}),
    (r"both readings fit.*class_dim=-1 or class_dim=1", NET, [(torch.randn(6, 3, 4), Y[:, None].expand(6, 3))], {}),
    (r"class_dim=0: expected a dimension", NET, [(torch.randn(6, 2, 4), Y)], {"class_dim": 0}),
    (r"class_dim=-3: expected a dimension", NET, [(torch.randn(6, 2, 4), Y)], {"class_dim": -3}),
    (r"class_dim=3: expected a dimension", NET, [(torch.randn(6, 2, 4), Y)], {"class_dim": 3}),
    (
        r"500 positions x 4 classes takes 1500 .*labels=sample",
        nn.Linear(4, 4),
        [torch.randn(6, 500, 4)],
        {"class_dim": -1},
    ),
    (r"1001 outputs takes 1001", nn.Linear(4, 1001), [X], {"loss": "mse"}),
    (r"reduction=none: expected one of sum, mean", NET, [(X, Y)], {"reduction": "none"}),
    (r"ignore_index=None: expected an integer", NET, [(X, Y)], {"ignore_index": None}),
    (r"for 4 examples, got \(8, 3\)", NET, [(X, Y)], {"outputs": lambda m, b: (m(b[0]).repeat(2, 1), None)}),
    (r"\(outputs, targets, mask\), got Tensor", NET, [(X, Y)], {"outputs": lambda m, b: m(b[0])}),
    (r"tensor of bool, got torch.int64", NET, [(X, Y)], {"outputs": lambda m, b: (m(b[0]), b[1], b[1])}),
    (r"expected shape \(6,\).*got \(3,\)", NET, [(X, Y)], {"outputs": lambda m, b: (m(b[0]), b[1], b[1][:3] > 0)}),
    (r"labels=exact reduction=sum with a function", NET, [(X, Y)], {"loss": nn.functional.cross_entropy}),
    (
        r"expected one loss per example, shape \(4,\), got shape \(\)",
        NET,
        [(X, Y)],
        {"loss": nn.functional.cross_entropy, "labels": "empirical"},
    ),
    (r"expected a tensor.*got tuple.*outputs=fn", NET, [(X, Y)], {"outputs": lambda m, b: ((m(b[0]),), None)}),
    (r"depend on no trainable parameter", NET, [(X, Y)], {"outputs": lambda m, b: (m(b[0]).detach(), None)}),
    (r"no parameter of the module requires grad", nn.Linear(4, 3).requires_grad_(False), [(X, Y)], {}),
    (r"no argument 'z'.*outputs=fn", NET, [{"input": X, "z": X}], {}),
    (r"the targets may be 'labels' or 'y'.*outputs=fn", NET, [{"input": X, "y": Y, "labels": Y}], {}),
    (
        r"the targets may be 'labels' or 'y'",
        Optional(4, 3),
        [{"x": X, "y": Y, "labels": Y}],
        {},
    ),
    (
        r"the shape of the outputs, \(6, 3\), got shape \(2, 3\)",
        NET,
        [(X, Y)],
        {"loss": "mse", "labels": "empirical", "outputs": lambda m, b: (m(b[0]), b[0][:2, :3])},
    ),
    (r"batch: expected.*got tuple", NET, [("x", X)], {}),
    (r"first dimensions \[3, 6\]", NET, [(X, Y[:3])], {}),
    (r"has no tensor", NET, [("x", "y")], {}),
    (r"track_running_stats=False", nn.Sequential(NET, nn.BatchNorm1d(3, track_running_stats=False)), [(X, Y)], {}),
    (r"change with the other examples", Coupled(4, 3), [(X, Y)], {}),
    (r"random numbers", Noisy(4, 3), [(X, Y)], {}),
    (r"importance of 'weight' is not finite", NET, [(X * float("inf"), Y)], {}),
    (r"importance of 'weight' is not finite", INFINITE, [(X, Y)], {}),
]


@pytest.mark.parametrize(("message", "net", "batches", "options"), MISTAKES, ids=[m[0][:40] for m in MISTAKES])
def test_a_mistake_is_named_with_its_remedy(
    message: str, net: nn.Module, batches: Any, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)  # two draws of dropout may be equal by chance
    with pytest.raises(ValueError, match=message) as caught:
        fisher(net, batches, **options)
    assert "\n" not in str(caught.value)


def test_options_can_be_checked_before_training() -> None:
    check_options(labels="exact", loss="mse", fisher_batch=1, label_samples=1)
    with pytest.raises(ValueError, match="labels=wrong"):
        check_options(labels="wrong", loss="mse", fisher_batch=1, label_samples=1)


def test_errors_of_groups_or_of_one_example_are_refused() -> None:
    with pytest.raises(ValueError, match="fisher_batch=4: expected 1"):
        fisher_and_error(NET, [(X, Y)], labels="empirical", fisher_batch=4)
    with pytest.raises(ValueError, match="at least 2 examples"):
        fisher_and_error(NET, [(X, Y)], samples=1)


def test_mas_needs_no_labels_and_says_when_outputs_are_wrong() -> None:
    assert mas(NET, [X]).keys() == {"weight", "bias"}
    assert mas(NET, [torch.randn(6, 2, 4)]).keys() == {"weight", "bias"}
    with pytest.raises(ValueError, match="expected a floating-point"):
        mas(NET, [(X, Y)], outputs=lambda m, b: (m(b[0]).argmax(1), None))


# --- outputs and inputs that would be read wrongly -------------------------------------------------------------------


@dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """An output with fields and keys, like ModelOutput of transformers."""

    logits: torch.Tensor
    hidden: torch.Tensor

    def __post_init__(self) -> None:
        self.update(logits=self.logits, hidden=self.hidden)


@dataclass
class Fields:
    logits: torch.Tensor
    hidden: torch.Tensor


class Named(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


class Returning(nn.Module):
    """A linear net whose ``forward`` returns what ``wrap`` makes of its logits and its input."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.linear(x), x)


WRAPS: dict[str, tuple[Any, str, str]] = {
    "dict": (lambda z, x: {"scores": z, "hidden": x}, "got dict with scores, hidden", "['scores']"),
    "two logits": (lambda z, x: {"logits": z, "aux_logits": z}, "got dict with logits, aux_logits", "['logits']"),
    "detector": (lambda z, x: Boxes(z, x), "got Boxes with logits, pred_boxes", ".logits"),
    "tuple": (lambda z, x: (z, x), "got tuple with 0, 1", "[0]"),
}


@dataclass
class Boxes:
    logits: torch.Tensor
    pred_boxes: torch.Tensor


@pytest.mark.parametrize("measure", [fisher, mas])
@pytest.mark.parametrize("name", WRAPS)
def test_outputs_that_are_no_tensor_are_described(name: str, measure: Any) -> None:
    """The message has the names of the entries, and code that selects the logits and works."""
    wrap, described, selection = WRAPS[name]
    net = Returning(wrap)
    with pytest.raises(ValueError, match="Pass outputs=fn") as caught:
        measure(net, [(X, Y)])
    assert described in str(caught.value)
    code = str(caught.value).rpartition("outputs=")[2]
    assert code == f"lambda module, batch: (module(batch[0]){selection}, batch[1])"
    assert measure(net, [(X, Y)], outputs=eval(code)).keys() == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("measure", [fisher, mas])
@pytest.mark.parametrize(
    "wrap",
    [Output, Fields, Named, lambda z, x: {"scores": z, "indices": x.long(), "loss": z.mean()}, lambda z, x: (z, None)],
    ids=["model_output", "dataclass", "namedtuple", "dict", "tuple"],
)
def test_logits_or_the_only_tensor_are_the_outputs(wrap: Any, measure: Any) -> None:
    net = Returning(wrap)
    for name, value in measure(net, [X]).items():
        torch.testing.assert_close(value, measure(net.linear, [X])[name.removeprefix("linear.")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", ["exact", "sample", "empirical", "predicted", "weighted", "reversed"])
def test_probabilities_are_refused_as_logits(labels: str, dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).to(dtype)
    with pytest.raises(ValueError, match="probabilities.*expects logits.*outputs=fn"):
        fisher(net, [(X.to(dtype), Y)], labels=labels)
    assert fisher(net, [(X.to(dtype), Y)], labels=labels, outputs=lambda m, b: (m(b[0]).log(), b[1]))


def test_what_may_be_logits_is_not_refused() -> None:
    """Positive logits, rows of which only some sum to 1, log-probabilities, one column, another loss, and MAS."""
    positive = Returning(lambda z, x: z.exp())
    assert fisher(positive, [(X, Y)])
    some = X[:, :1].clamp(min=0.0)  # 0 for some examples
    assert bool((some == 0).any()) and bool((some > 0).any())
    assert fisher(Returning(lambda z, x: z.softmax(1) * (1 + x[:, :1].clamp(min=0.0))), [(X, Y)])
    assert fisher(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), [(X, Y)])
    assert fisher(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), [(X, Y)], loss="binary_cross_entropy")
    softmax = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    assert fisher(softmax, [(X, Y)], loss="mse")
    assert mas(softmax, [(X, Y)])


class OneInput(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Defaulted(nn.Linear):
    def forward(self, x: torch.Tensor, mask: Any = None) -> torch.Tensor:
        return super().forward(x if mask is None else x * mask)


class KeywordOnly(nn.Linear):
    def forward(self, x: torch.Tensor, *, mask: Any = None) -> torch.Tensor:
        return super().forward(x if mask is None else x * mask)


class Variable(nn.Linear):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.stack(inputs).sum(0))


class Required(nn.Linear):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(x * mask)


@pytest.mark.parametrize("kind", [Defaulted, KeywordOnly, Variable, Required])
def test_a_second_input_is_not_left_out(kind: type[nn.Linear]) -> None:
    message = f"{kind.__name__}.forward takes more than one input and a batch has 3 entries.*outputs=fn"
    with pytest.raises(ValueError, match=message):
        fisher(kind(4, 3), [(X, X, Y)])
    if kind is Required:
        with pytest.raises(ValueError, match="a batch has 2 entries.*outputs=fn"):
            fisher(kind(4, 3), [(X, Y)])
    else:
        assert fisher(kind(4, 3), [(X, Y)])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_third_entry_is_ignored_if_one_input_is_taken(compiled: bool) -> None:
    net = OneInput(4, 3)
    module = torch.compile(net, backend="eager") if compiled else net
    expected = fisher(net, [(X, Y)])
    for name, f in fisher(module, [(X, Y, torch.arange(6))]).items():  # type: ignore[arg-type]
        torch.testing.assert_close(f, expected[name])


class WithoutForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)


class ComplexWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.complex64) @ self.weight).abs() + self.bias


@pytest.mark.parametrize("measure", [fisher, mas])
def test_modules_without_a_value_are_refused(measure: Any) -> None:
    """A lazy or complex parameter, complex outputs, or no ``forward``."""
    with pytest.raises(ValueError, match="'0.weight' has no shape yet.*one batch"):
        measure(nn.Sequential(nn.LazyLinear(3)), [(X, Y)])
    net = ComplexWeight()
    with pytest.raises(ValueError, match="'weight' is complex.*two real parameters"):
        measure(net, [(X, Y)])
    net.weight.requires_grad_(False)
    assert measure(net, [(X, Y)]).keys() == {"bias"}
    with pytest.raises(ValueError, match="floating-point dtype, got torch.complex64"):
        measure(Returning(lambda z, x: z.to(torch.complex64)), [(X, Y)])
    with pytest.raises(ValueError, match="WithoutForward has no forward.*outputs=fn"):
        measure(WithoutForward(), [(X, Y)])
