"""The plain PyTorch EWC of docs/concepts.md gives the penalty and the importance of clbench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, fisher
from tests.conftest import trainer

PAGE = Path(__file__).resolve().parents[1] / "docs/concepts.md"


class Classifier(L.LightningModule):
    """The network and the optimiser of the page."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the block of the page defines."""
    section = PAGE.read_text(encoding="utf-8").partition("## All of EWC on one screen")[2]
    names: dict[str, Any] = {}
    exec(section.partition("```python\n")[2].partition("```")[0], names)
    return names


def equal(ours, theirs):
    for name, (a, b) in zip(ours, zip(ours.values(), theirs, strict=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12, msg=name)


def test_the_importance_of_the_page_is_the_exact_fisher(page):
    importance, anchor = page["learned"][1]
    equal(dict(page["net"].named_parameters()), anchor)  # measured where the second task ended
    equal(fisher(page["net"], [page["inputs"][1]]), importance)


def test_the_page_and_clbench_learn_the_same(page):
    torch.manual_seed(0)  # as the page, before it makes the same network
    module = Classifier(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double())
    ewc = EWC(lam=page["lam"])
    for x, y in zip(page["inputs"], page["labels"], strict=True):
        data = DataLoader(TensorDataset(x, y), batch_size=len(x))
        trainer([ewc], max_epochs=100, precision="64-true").fit(module, data)
    equal(dict(module.named_parameters()), page["net"].parameters())
    (first, _), (second, _) = page["learned"]
    equal(ewc.penalty.importance, [a + b for a, b in zip(first, second, strict=True)])
    assert page["penalty"]().item() > 0.01
    assert ewc.value(module).item() == pytest.approx(page["penalty"]().item(), rel=1e-6)
