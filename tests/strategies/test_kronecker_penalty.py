"""The penalty of Kronecker products against dense matrices in float64, and its sums over tasks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clbench.importance.matrix_layers import MatrixLayer
from clbench.strategies.kronecker_penalty import ACCUMULATE, KroneckerPenalty, Product, nearest, sum_factors
from clbench.strategies.penalty_state import PenaltyState

LAYER, TRANSPOSED = MatrixLayer("w", "b"), MatrixLayer("v", None, True)
SHAPES = {"w": (3, 2, 2), "b": (3,), "v": (4, 2), "scale": (5,), "other": (2,)}


def psd(size: int, generator: torch.Generator) -> Tensor:
    """Return a random positive semi-definite matrix of low rank."""
    root = torch.randn(size, max(1, size - 1), generator=generator, dtype=torch.double)
    return root @ root.T


def penalties(tasks: int, seed: int = 0) -> list[KroneckerPenalty]:
    """Return one penalty per task: a layer with a bias, one with a transposed weight, and the diagonal of the rest."""
    generator = torch.Generator().manual_seed(seed)

    def one() -> KroneckerPenalty:
        drawn = {n: torch.randn(s, generator=generator, dtype=torch.double) for n, s in SHAPES.items()}
        products = {
            LAYER: (Product(psd(5, generator), psd(3, generator)),),
            TRANSPOSED: (Product(psd(4, generator), psd(2, generator)),),
        }
        return KroneckerPenalty({n: drawn[n].square() for n in ("scale", "other")}, drawn, products)

    return [one() for _ in range(tasks)]


def accumulated(tasks: int, how: str, seed: int = 0) -> KroneckerPenalty:
    whole, *others = penalties(tasks, seed)
    for newer in others:
        whole = whole.merge(newer, ACCUMULATE[how])
    return whole


def dense(products: tuple[Product, ...]) -> Tensor:
    return sum(torch.kron(p.inputs, p.gradients) / p.tasks for p in products)  # type: ignore[return-value]


def written_out(q: KroneckerPenalty, params: dict[str, Tensor]) -> Tensor:
    d = {name: params[name] - q.anchor[name] for name in params}
    columns = torch.cat([d["w"].flatten(1), d["b"][:, None]], 1).T.flatten()  # one column of D after another
    transposed = d["v"].flatten()  # the rows of V are the columns of its transpose
    diagonal = sum((f * d[name] ** 2).sum() for name, f in q.diagonal.items())
    return (
        columns @ dense(q.products[LAYER]) @ columns
        + transposed @ dense(q.products[TRANSPOSED]) @ transposed
        + diagonal
    )


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.double) for n, s in SHAPES.items()}
    return {n: t.requires_grad_() for n, t in drawn.items()}


@pytest.mark.parametrize("how", ACCUMULATE)
@pytest.mark.parametrize("tasks", [1, 3])
def test_value_and_gradient_are_those_of_the_dense_matrix(how, tasks):
    q, params = accumulated(tasks, how), weights(9)
    value = written_out(q, params)
    torch.testing.assert_close(q.value(params), value)
    half = q.half_gradient(params)
    assert half.keys() == params.keys()
    for name, g in zip(params, torch.autograd.grad(value / 2, list(params.values())), strict=True):
        torch.testing.assert_close(half[name], g)
    for name, g in zip(params, torch.autograd.grad(q.value(params) / 2, list(params.values())), strict=True):
        torch.testing.assert_close(half[name], g)


@pytest.mark.parametrize("how", ACCUMULATE)
def test_the_importance_is_the_diagonal_of_the_dense_matrix(how):
    q = accumulated(2, how)
    by_column = dense(q.products[LAYER]).diag().view(5, 3).T
    torch.testing.assert_close(q.importance["w"], by_column[:, :-1].reshape(3, 2, 2))
    torch.testing.assert_close(q.importance["b"], by_column[:, -1])
    torch.testing.assert_close(q.importance["v"], dense(q.products[TRANSPOSED]).diag().view(4, 2))
    assert torch.equal(q.importance["scale"], q.diagonal["scale"])


@pytest.mark.parametrize("how", ACCUMULATE)
def test_the_step_size_is_compared_with_the_largest_eigenvalue(how):
    q = accumulated(3, how)
    largest = max(torch.linalg.eigvalsh(dense(products))[-1].item() for products in q.products.values())
    largest = max(largest, *(f.max().item() for f in q.diagonal.values()))
    assert 0.98 * largest <= q.curvature() <= largest * (1 + 1e-9)
    assert PenaltyState(q, strength=3.0, lam=3.0).stiffness(0.1) == pytest.approx(0.3 * q.curvature())


def distance(tasks: int, how: str, seed: int) -> float:
    """Return the Frobenius norm of the error of all layers."""
    exact, q = accumulated(tasks, "per_task", seed), accumulated(tasks, how, seed)
    errors = [dense(exact.products[layer]) - dense(products) for layer, products in q.products.items()]
    return float(torch.stack([e.square().sum() for e in errors]).sum().sqrt())


@pytest.mark.parametrize("tasks", [2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_nearest_is_not_worse_than_the_sums_of_factors(tasks, seed):
    assert 0 < distance(tasks, "nearest", seed) <= distance(tasks, "sum_factors", seed)


@pytest.mark.parametrize("seed", range(5))
def test_nearest_is_the_truncated_svd_of_the_rearranged_sum(seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = (Product(psd(4, generator), psd(3, generator)) for _ in range(2))
    found = nearest(p, q)
    rearranged = sum(torch.outer(r.inputs.flatten(), r.gradients.flatten()) for r in (p, q))
    u, s, v = torch.linalg.svd(rearranged, full_matrices=False)
    torch.testing.assert_close(
        torch.outer(found.inputs.flatten(), found.gradients.flatten()), s[0] * torch.outer(u[:, 0], v[0])
    )
    for t in found[:2]:
        assert torch.equal(t, t.T)
        assert torch.linalg.eigvalsh(t)[0] > -1e-12


def test_nearest_of_special_products():
    """Equal products, a product of zeros, and products without a common direction."""
    generator = torch.Generator().manual_seed(0)
    p = Product(psd(3, generator), psd(2, generator))
    zero = Product(torch.zeros(3, 3).double(), torch.zeros(2, 2).double())
    torch.testing.assert_close(dense((nearest(p, p),)), 2 * dense((p,)))
    for one, other in ((p, zero), (zero, p)):
        torch.testing.assert_close(dense((nearest(one, other),)), dense((p,)))
    assert not dense((nearest(zero, zero),)).any()
    first, last = (Product(torch.diag(d), torch.diag(d)) for d in (torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])))
    for one, other in ((first, last), (last, first)):
        torch.testing.assert_close(dense((nearest(one, other),)), dense((first,)))


def test_equal_tasks_are_summed_exactly_in_every_way():
    (q,) = penalties(1)
    for combine in ACCUMULATE.values():
        whole = q.merge(q, combine).merge(q, combine)
        torch.testing.assert_close(dense(whole.products[LAYER]), 3 * dense(q.products[LAYER]))


def test_the_division_of_the_sums_counts_the_tasks_of_the_layer():
    p, q = (Product(torch.eye(2) * k, torch.eye(3)) for k in (1.0, 2.0))
    assert sum_factors(sum_factors(p, q), q).tasks == 3


@pytest.mark.parametrize(("names", "rows"), [({"w"}, slice(0, 12)), ({"b"}, slice(12, 15)), ({"w", "b"}, slice(0, 15))])
def test_a_part_of_a_layer_keeps_its_block_of_the_matrix(names, rows):
    q = accumulated(2, "per_task")
    restricted = q.restricted(names | {"scale"})
    assert restricted.anchor.keys() == names | {"scale"}
    assert restricted.diagonal.keys() == {"scale"}
    ((layer, products),) = restricted.products.items()
    assert set(layer.names) == names
    assert torch.equal(dense(products), dense(q.products[LAYER])[rows, rows])


def test_parts_that_were_measured_apart_add_up():
    """A task in which only the weight was penalised, and one in which the whole layer was."""
    first, second = penalties(2)
    whole = first.restricted({"w"}).merge(second, sum_factors)
    params = weights(3)
    at_newest = first.restricted({"w"}).at({"w": second.anchor["w"]})
    torch.testing.assert_close(whole.value(params), at_newest.value(params) + second.value(params))


@pytest.mark.parametrize("how", ACCUMULATE)
def test_memory_grows_only_with_one_product_per_task(how):
    sizes = [accumulated(tasks, how).size_in_bytes() for tasks in (1, 2, 3)]
    one = 8 * (5 * 5 + 3 * 3 + 4 * 4 + 2 * 2)
    step = one if how == "per_task" else 0
    assert sizes == [sizes[0], sizes[0] + step, sizes[0] + 2 * step]
    assert sizes[0] == one + 8 * (12 + 3 + 8 + 2 * (5 + 2))
