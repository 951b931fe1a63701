"""scripts/compare_fisher.py: formulas of other projects against loops and closed forms, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from clbench.importance import fisher
from tests import references

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import compare_fisher as script
from comparison import formulas, report


class Small(nn.Module):
    """Return a network with body and head, as the formulas expect."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Small().double()


@pytest.fixture
def data():
    """Return 21 examples, so that the last batch has 3 at batch size 6."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(21, 4, generator=generator, dtype=torch.float64), torch.randint(3, (21,), generator=generator)


def batch_gradients(net, x, y, batch):
    """Yield (size, gradient of the mean loss) of each batch, with .grad as in the projects."""
    found = []
    for x_b, y_b in zip(x.split(batch), y.split(batch), strict=True):
        net.zero_grad()
        nn.functional.cross_entropy(net(x_b), y_b).backward()
        found.append((len(x_b), {name: p.grad.clone() for name, p in net.named_parameters()}))
    net.zero_grad()
    return found


def scaled(f, factor):
    return {name: factor * value for name, value in f.items()}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_van_de_vens_is_the_batch_one_loop_over_n_minus_one(net, data):
    for labels in ("exact", "empirical", "predicted"):
        loop = references.fisher(net, *data, labels)
        close(formulas.van_de_ven(net, *data, labels), scaled(loop, 21 / 20))


def test_van_de_vens_sampled_labels_average_to_the_exact_fisher(net, data):
    x, y = (part.repeat(2000, *[1] * (part.dim() - 1)) for part in data)
    sampled, exact = formulas.van_de_ven(net, x, y, "sample"), formulas.exact(net, *data, 6)
    torch.testing.assert_close(sampled, exact, rtol=0.03, atol=1e-3)


def test_mammoth_weights_squared_gradients_by_the_probability(net, data):
    """The weight is the probability of the true label."""
    x, y = data
    p = net(x).softmax(1)[torch.arange(21), y]
    each = references.per_example(net, x, y, "empirical", "cross_entropy")
    loop = {name: sum(p[n].item() * each[n][name] for n in range(21)) / (4 * 6) for name in each[0]}
    close(formulas.mammoth(net, x, y, 6), loop)


def test_mammoth_is_the_exact_fisher_with_one_label_per_example(net, data):
    """The sum over all labels is the exact Fisher."""
    x, _ = data
    terms = [formulas.mammoth(net, x, torch.full((21,), label), 21) for label in range(3)]
    close({name: sum(term[name] for term in terms) for name in terms[0]}, formulas.exact(net, *data, 6))


def test_avalanche_is_the_mean_of_squared_batch_gradients(net, data):
    found = batch_gradients(net, *data, 6)
    close(
        formulas.avalanche(net, *data, 6),
        {name: sum(g[name].square() for _, g in found) / 4 for name in found[0][1]},
    )


def test_avalanche_with_batches_of_one_is_the_empirical_fisher(net, data):
    close(formulas.avalanche(net, *data, 1), fisher(net, [data], labels="empirical"))


def test_avalanche_equals_fisher_batch_where_the_groups_agree(net):
    """Return batches with three copies of one example, so that groups of three have equal gradients in any order."""
    x, y = torch.ones(12, 4, dtype=torch.float64), torch.ones(12, dtype=torch.long)
    close(formulas.avalanche(net, x, y, 3), fisher(net, [(x, y)], labels="empirical", fisher_batch=3))


def test_avalanche_on_one_batch_equals_fisher_batch_of_all(net, data):
    close(formulas.avalanche(net, *data, 21), fisher(net, [data], labels="empirical", fisher_batch=21))


def test_pycil_is_avalanche_clamped(net, data):
    x, y = data
    free, clamped = formulas.avalanche(net, 0.05 * x, y, 6), formulas.pycil(net, 0.05 * x, y, 6)
    assert any((f > 1e-4).any() for f in free.values()) and any((f < 1e-4).any() for f in free.values())
    close(clamped, {name: torch.minimum(f, f.new_tensor(1e-4)) for name, f in free.items()})


def test_facil_takes_predicted_labels_and_leaves_the_head_out(net, data):
    """It uses whole batches only and drops the last, smaller one."""
    x, _ = data
    found = batch_gradients(net, x[:18], net(x[:18]).argmax(1), 6)
    expected = {name: sum(6 * g[name].square() for _, g in found) / 18 for name in found[0][1]}
    close(
        formulas.facil(net, *data, 6),
        {name: 0 * f if name.startswith("head.") else f for name, f in expected.items()},
    )


def test_facil_is_not_a_number_below_one_batch(net, data):
    assert all(f.isnan().all() for f in formulas.facil(net, *data, 22).values())


def test_sequel_squares_the_gradient_summed_over_batches(net, data):
    found = batch_gradients(net, *data, 6)
    close(
        formulas.sequel(net, *data, 6),
        {name: sum(g[name] for _, g in found).square() / 4 for name in found[0][1]},
    )


def test_sequel_is_batches_times_fisher_batch_of_all_examples(net, data):
    close(formulas.sequel(net, *data, 7), scaled(fisher(net, [data], labels="empirical", fisher_batch=21), 3))


@pytest.mark.parametrize("formula", ["mammoth", "avalanche", "pycil", "facil", "sequel"])
def test_a_formula_leaves_weights_gradients_and_mode_alone(net, data, formula):
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.train()
    importance = getattr(formulas, formula)(net, *data, 6)
    close(dict(net.named_parameters()), before)
    assert net.training and all(p.grad is None for p in net.parameters())
    assert not any(f.requires_grad for f in importance.values())
    assert all((f >= 0).all() for f in importance.values())


def test_a_cell_has_the_median_and_the_range_over_seeds():
    rows = [{"formula": "Mammoth", "step": 0, "ratio": {"all": value}, "lam_factor": 2.0} for value in (0.1, 0.4, 0.2)]
    assert report.table(rows, report.ratio, ".2g").splitlines()[-1] == "| Mammoth | 0.2 (0.1 to 0.4) |"
    assert report.table(rows, report.lam_here, ".2g").splitlines()[-1] == "| Mammoth | 0.4 (0.2 to 0.8) |"


@pytest.mark.slow
def test_quick_on_digits_writes_numbers_tables_and_figure(tmp_path):
    done = subprocess.run(
        [sys.executable, script.__file__, "--quick", "--data", "digits", "--out", "here"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "here" / "compare_fisher.json").read_text(encoding="utf-8"))
    ratio = {(row["formula"], row["step"]): row["ratio"]["all"] for row in found["rows"]}
    for step in (0, 20):
        assert ratio["van de Ven, all labels", step] == pytest.approx(64 / 63, rel=1e-6)
        assert ratio["Mammoth", step] < ratio["van de Ven, true label", step]
        assert ratio["PyCIL", step] < ratio["SequeL", step] < 1
    assert all(-1 <= row["rank_correlation"] <= 1 for row in found["rows"])
    ours = next(row for row in found["batch_norm"] if row["pass"].startswith("clbench"))
    assert ours["moved"] == 0 and ours["accuracy_before"] == ours["accuracy_after"]
    assert any(row["moved"] > 0 for row in found["batch_norm"] if "train mode" in row["pass"])
    assert "| Mammoth |" in (tmp_path / "here" / "compare_fisher.md").read_text(encoding="utf-8")
    assert (tmp_path / "here" / "compare_fisher.png").stat().st_size > 10_000
    really_run = [row for row in found["rows"] if row["formula"] == "Avalanche (really run)"]
    if find_spec("avalanche") is None:
        assert "pip install avalanche-lib==0.6.0" in done.stdout
        assert not really_run
    else:
        assert len(really_run) == 2
        assert max(row["rebuilt_differs"] for row in really_run) < 1e-5


def test_an_option_out_of_range_is_refused(capsys):
    with pytest.raises(SystemExit):
        script.arguments(["--examples", "1"])
    assert "--examples 1: expected at least 2" in capsys.readouterr().err
