"""The callback for transformers.Trainer trains as the strategy in a Trainer of Lightning does."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from clbench import EWC, MAS, SI
from clbench.errors import ConfigError

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("clbench.integrations.hf")

N = 12
OPTIMIZERS = {"sgd": partial(torch.optim.SGD, lr=0.1), "adam": partial(torch.optim.Adam, lr=0.01)}

pytestmark = pytest.mark.filterwarnings("ignore:::transformers|accelerate", "ignore:.*pin_memory.*")


class Texts(Dataset):
    """Rows of tokens with a label that depends on one of them."""

    def __init__(self, position: int) -> None:
        generator = torch.Generator().manual_seed(position)
        self.tokens = torch.randint(2, 20, (N, 6), generator=generator)
        self.labels = (self.tokens[:, position] > 10).long()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def model() -> Any:
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 8}
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16, num_labels=2, **options)
    return transformers.BertForSequenceClassification(config).double()


def train(
    net: Any, callback: Any, task: int, folder: Any, optimizer: str = "sgd", steps: int = 8, **options: Any
) -> None:
    """Train with transformers.Trainer, a whole data set per step, so that the order of the examples does not matter."""
    made = OPTIMIZERS[optimizer](net.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)
    args = {"per_device_train_batch_size": N, "max_steps": steps, "max_grad_norm": 0, "use_cpu": True} | options
    arguments = transformers.TrainingArguments(str(folder), report_to=[], save_strategy="no", disable_tqdm=True, **args)
    trainer = transformers.Trainer(
        net, arguments, train_dataset=Texts(task), callbacks=[callback], optimizers=(made, schedule)
    )
    trainer.model_accepts_loss_kwargs = False  # otherwise it adds the mean losses of accumulated batches of this model
    trainer.train()


class Module(L.LightningModule):
    """The same training in Lightning."""

    def __init__(self, net: Any, optimizer: str) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def forward(self, **batch: Any) -> Any:
        return self.net(**batch)

    def training_step(self, batch: Any, _: int) -> Any:
        return self.net(**batch).loss

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_importance_equal_those_of_lightning(optimizer: str, accumulate: int, tmp_path: Any) -> None:
    callback, net = hf.EWCCallback(lam=5.0), model()
    ewc, module = EWC(lam=5.0), Module(model(), optimizer)
    options = {"max_epochs": 8, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for task in (0, 3):
        size = {"per_device_train_batch_size": N // accumulate, "gradient_accumulation_steps": accumulate}
        train(net, callback, task, tmp_path, optimizer, **size)
        loader = DataLoader(Texts(task), batch_size=N // accumulate)
        L.Trainer(accelerator="cpu", accumulate_grad_batches=accumulate, callbacks=[ewc], **options).fit(module, loader)
    for (name, a), b in zip(net.named_parameters(), module.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)
        found, expected = (
            (callback.strategy.penalty.importance[name], ewc.penalty.importance[f"net.{name}"]),
            (callback.strategy.penalty.anchor[name], ewc.penalty.anchor[f"net.{name}"]),
        )
        for one, other in (found, expected):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10, msg=name)


def test_the_first_task_is_remembered(tmp_path: Any) -> None:
    """With lam=0 the second task changes the loss on the first one more than with a penalty."""
    losses = {}
    for lam in (0.0, 100.0):
        callback, net = hf.PenaltyCallback(MAS(lam=lam)), model()
        train(net, callback, 0, tmp_path, "adam", 40)
        train(net, callback, 3, tmp_path, "adam", 40)
        with torch.no_grad():
            losses[lam] = net(input_ids=Texts(0).tokens, labels=Texts(0).labels).loss.item()
    assert losses[100.0] < losses[0.0] / 2


def test_the_state_continues_in_another_process(tmp_path: Any) -> None:
    callback, net = hf.EWCCallback(lam=5.0), model()
    train(net, callback, 0, tmp_path)
    torch.save((net.state_dict(), callback.strategy.state_dict()), tmp_path / "task_0.pt")
    weights, state = torch.load(tmp_path / "task_0.pt")
    again, other = hf.EWCCallback(lam=5.0), model()
    other.load_state_dict(weights)
    again.strategy.load_state_dict(state)
    for one, part in ((net, callback), (other, again)):
        train(one, part, 3, tmp_path)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm=1.0: expected 0, .* Use TrainingArguments"),
        ({"optim": "lomo"}, "optim=.*expected an optimizer that steps after the backward pass"),
    ],
)
def test_arguments_that_miss_the_penalty_are_refused(options: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        train(model(), hf.EWCCallback(), 0, tmp_path, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fp16": True}, "fp16=True: expected False"),
        ({"deepspeed": {"zero": 1}}, "deepspeed: expected None"),
        ({"fsdp": ["full_shard"]}, "fsdp: expected None"),
        ({"world_size": 2}, "2 processes or GPUs: expected 1"),
        ({"n_gpu": 2}, "2 processes or GPUs: expected 1"),
    ],
)
def test_hardware_that_misses_the_penalty_is_refused(values: dict[str, Any], message: str) -> None:
    """Of arguments that cannot be constructed on a machine without GPUs."""

    class Arguments:
        max_grad_norm, fp16, deepspeed, fsdp, world_size, n_gpu, optim = 0, False, None, [], 1, 0, "adamw_torch"

    args = Arguments()
    vars(args).update(values)
    with pytest.raises(ConfigError, match=message):
        hf.refuse_what_misses_the_penalty(args)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hf.PenaltyCallback(SI()), "expected EWC, OnlineEWC or MAS, got SI"),
        (lambda: hf.EWCCallback(data="validation"), "data=validation: expected train or batches"),
        (lambda: hf.EWCCallback(lam=-1), "lam=-1: expected a finite number >= 0"),
    ],
)
def test_a_wrong_strategy_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
