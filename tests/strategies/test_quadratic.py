from functools import reduce

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from clbench.params import snapshot
from clbench.strategies.quadratic import Quadratic, add, quadratic, recentre

NAMES = ("a", "b", "c")
coordinates = st.floats(-10, 10)
importances = st.just(0.0) | st.floats(0, 1e3)


def vectors(entries, names):
    def vector():
        return st.lists(entries, min_size=2, max_size=2).map(lambda v: torch.tensor(v, dtype=torch.double))

    return st.fixed_dictionaries({name: vector() for name in names})


@st.composite
def quadratics(draw, names=NAMES):
    known = sorted(draw(st.sets(st.sampled_from(names), min_size=1)))
    return quadratic(draw(vectors(importances, known)), draw(vectors(coordinates, known)))


def sequences(smallest=2, largest=6):
    return st.lists(quadratics(), min_size=smallest, max_size=largest)


points = vectors(coordinates, NAMES)


def random_quadratic(seed, names=NAMES, shape=(3, 2)):
    draw = torch.Generator().manual_seed(seed)
    importance = {name: torch.rand(shape, generator=draw, dtype=torch.double) for name in names}
    anchor = {name: torch.randn(shape, generator=draw, dtype=torch.double) for name in names}
    return quadratic(importance, anchor)


def penalty(q, theta):
    """Return sum F (theta - a)^2, one number at a time."""
    return sum(
        f * (t - a) ** 2
        for name in q.importance
        for f, t, a in zip(*(v[name].flatten().tolist() for v in (q.importance, theta, q.anchor)), strict=True)
    )


def half_gradient_by_autograd(function, theta):
    theta = {name: t.clone().requires_grad_() for name, t in theta.items()}
    total = function(theta) / 2
    gradients = torch.autograd.grad(total, list(theta.values()), allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(theta.items(), gradients, strict=True)
    }


def total_importance(qs):
    return sum(f.sum().item() for q in qs for f in q.importance.values())


def copied(q):
    return Quadratic(snapshot(q.importance), snapshot(q.anchor), q.constant.clone())


def assert_same(p, q, atol=0.0):
    """Assert equal names and numbers, exactly unless ``atol`` is given."""
    for left, right in zip(p[:2], q[:2], strict=True):
        assert set(left) == set(right)
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol)
    torch.testing.assert_close(p.constant, q.constant, rtol=0, atol=atol)


@given(quadratics())
def test_penalty_and_gradient_are_zero_at_the_anchor(q):
    assert q.value(q.anchor).item() == 0
    assert all((g == 0).all() for g in q.half_gradient(q.anchor).values())


def test_the_value_is_weighted_squared_distance_plus_constant():
    q = Quadratic({"w": torch.tensor([2.0, 0.5])}, {"w": torch.tensor([1.0, -1.0])}, torch.tensor(10.0))
    assert q.value({"w": torch.tensor([4.0, 1.0])}).item() == 2 * 9 + 0.5 * 4 + 10


def test_unknown_parameters_do_not_count():
    q = random_quadratic(0, names=["a"])
    theta = {"a": torch.zeros(3, 2).double(), "new": torch.full((4,), 1e6).double()}
    assert q.value(theta) == q.value({"a": theta["a"]})
    assert set(q.half_gradient(theta)) == {"a"}


def test_the_half_gradient_is_of_the_parameters_given_only():
    q, theta = random_quadratic(0), random_quadratic(1).anchor
    assert q.half_gradient({}) == {}
    some = q.half_gradient({"b": theta["b"]})
    assert set(some) == {"b"}
    assert torch.equal(some["b"], q.half_gradient(theta)["b"])
    assert not q.half_gradient({"b": theta["b"].requires_grad_()})["b"].requires_grad


@given(quadratics(), points)
def test_the_half_gradient_is_the_gradient_of_half_the_value(q, theta):
    reference = half_gradient_by_autograd(q.value, theta)
    for name, g in q.half_gradient(theta).items():
        torch.testing.assert_close(g, reference[name], rtol=1e-14, atol=1e-300)  # subnormal numbers are less precise


@given(sequences(), points)
def test_the_sum_of_penalties_equals_the_constant_memory_form(qs, theta):
    assert reduce(add, qs).value(theta).item() == pytest.approx(
        sum(penalty(q, theta) for q in qs), rel=1e-10, abs=1e-10
    )


@given(sequences(), points)
def test_the_gradient_of_the_sum_equals_the_constant_memory_form(qs, theta):
    gradient = reduce(add, qs).half_gradient(theta)
    separate = half_gradient_by_autograd(lambda t: sum(q.value(t) for q in qs), theta)
    for name, g in gradient.items():
        torch.testing.assert_close(g, separate[name], rtol=1e-12, atol=1e-12 * (1 + total_importance(qs)))


@pytest.mark.parametrize("tasks", range(2, 7))
def test_the_constant_memory_form_is_exact_on_random_quadratics(tasks):
    qs = [random_quadratic(seed, shape=(20, 10)) for seed in range(tasks)]
    total = reduce(add, qs)
    for seed in range(100, 110):
        theta = random_quadratic(seed, shape=(20, 10)).anchor
        assert total.value(theta).item() == pytest.approx(sum(penalty(q, theta) for q in qs), rel=1e-10)
        for name, g in total.half_gradient(theta).items():
            separate = sum(q.importance[name] * (theta[name] - q.anchor[name]) for q in qs)
            torch.testing.assert_close(g, separate, rtol=1e-12, atol=1e-12)


@given(sequences(), points, st.randoms(use_true_random=False))
def test_the_order_of_adding_does_not_change_the_value(qs, theta, random):
    shuffled = random.sample(qs, len(qs))
    expected = reduce(add, qs).value(theta).item()
    assert reduce(add, shuffled).value(theta).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(sequences())
def test_adding_keeps_two_finite_tensors_a_parameter(qs):
    total = reduce(add, qs)
    assert set(total.importance) == set(total.anchor) == {name for q in qs for name in q.importance}
    assert all(torch.isfinite(t).all() for params in total[:2] for t in params.values())
    assert torch.isfinite(total.constant)


def test_where_all_importances_are_zero_the_anchor_is_the_newest():
    qs = [random_quadratic(seed) for seed in range(3)]
    unimportant = [q._replace(importance={name: torch.zeros_like(f) for name, f in q.importance.items()}) for q in qs]
    assert_same(reduce(add, unimportant), unimportant[-1])


def test_at_zero_importance_the_anchor_is_that_of_the_other():
    zero, one = torch.zeros(1, dtype=torch.double), torch.ones(1, dtype=torch.double)
    free, important = quadratic({"w": zero}, {"w": 0.1 * one}), quadratic({"w": 3 * one}, {"w": 0.7 * one})
    assert_same(add(free, important), important)
    assert_same(add(important, free), important)


def test_a_parameter_that_one_side_knows_is_taken_from_that_side():
    p, q = random_quadratic(0, names=["a", "b"]), random_quadratic(1, names=["b", "c"])
    total = add(p, q)
    for name, side in (("a", p), ("c", q)):
        assert torch.equal(total.importance[name], side.importance[name])
        assert torch.equal(total.anchor[name], side.anchor[name])


def test_adding_completes_the_square_in_numbers():
    p = quadratic({"w": torch.tensor([1.0])}, {"w": torch.tensor([0.0])})
    q = quadratic({"w": torch.tensor([3.0])}, {"w": torch.tensor([4.0])})
    total = add(p, q)
    assert total.importance["w"].item() == 4
    assert total.anchor["w"].item() == 3
    assert total.constant.item() == 1 * 3 / 4 * 16


@given(quadratics(), quadratics(), st.floats(0, 1))
def test_recentring_decays_importance_and_takes_the_new_anchor(p, q, decay):
    moved = recentre(p, q, decay)
    for name in {*p.importance, *q.importance}:
        zero = torch.zeros(2, dtype=torch.double)
        f1, f2 = p.importance.get(name, zero), q.importance.get(name, zero)
        assert torch.equal(moved.importance[name], decay * f1 + f2)
        assert torch.equal(moved.anchor[name], q.anchor[name] if name in q.anchor else p.anchor[name])


def test_a_recentred_penalty_is_zero_at_the_newest_anchor():
    p, q = add(random_quadratic(0), random_quadratic(1)), random_quadratic(2)
    assert recentre(p, q, 1.0).value(q.anchor).item() == 0


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_with_two_tasks_separate_and_recentred_forms_are_equal(decay):
    nothing, first = quadratic({}, {}), random_quadratic(0)
    assert_same(add(nothing, first), first)
    assert_same(recentre(nothing, first, decay), first)


def test_with_three_tasks_the_two_forms_have_other_gradients():
    """The tasks have different anchors."""
    first, second = random_quadratic(0), random_quadratic(1)
    theta = random_quadratic(2).anchor
    separate, recentred = add(first, second).half_gradient(theta), recentre(first, second, 1.0).half_gradient(theta)
    for name, f1 in first.importance.items():
        torch.testing.assert_close(separate[name] - recentred[name], f1 * (second.anchor[name] - first.anchor[name]))
        assert not torch.allclose(separate[name], recentred[name])


def test_with_three_tasks_at_one_anchor_the_two_forms_agree():
    first = random_quadratic(0)
    second = random_quadratic(1)._replace(anchor=first.anchor)
    assert_same(add(first, second), recentre(first, second, 1.0), atol=1e-14)


def test_nothing_is_changed_in_place():
    p, q, theta = random_quadratic(0), random_quadratic(1, names=["b", "c"]), random_quadratic(2).anchor
    before = copied(p), copied(q), snapshot(theta)
    add(p, q), recentre(p, q, 0.5), p.value(theta), p.half_gradient(theta)
    assert_same(p, before[0])
    assert_same(q, before[1])
    assert all(torch.equal(theta[name], t) for name, t in before[2].items())
