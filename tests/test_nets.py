import pytest
import torch
from torch import nn

from clbench.nets import MultiHead, Net, SlicedHead, features_of, mlp

TASKS = torch.tensor([0, 2, 1, 1, 0])


def features():
    return torch.randn(len(TASKS), 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def heads(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    own_columns = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return [MultiHead(6, sizes).double(), SlicedHead(6, own_columns).double()]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_mlp_of_the_literature_on_mnist_has_478410_parameters():
    assert parameters(Net(mlp((1, 28, 28), (400, 400)), MultiHead(400, [10]))) == 478_410


@pytest.mark.parametrize(("shape", "hidden"), [((1, 8, 8), [5]), ((3, 4, 4), [7, 3]), ((10,), [4, 4, 2])])
def test_an_mlp_turns_inputs_of_its_shape_into_features_of_its_last_width(shape, hidden):
    body = mlp(shape, hidden)
    assert body(torch.zeros(4, *shape)).shape == (4, hidden[-1])
    assert features_of(body, shape) == hidden[-1]


def test_an_mlp_has_batch_norm_after_relu_and_then_dropout_in_every_hidden_layer():
    layers = [type(layer).__name__ for layer in mlp((4,), (3, 2), batch_norm=True, dropout=0.5)]
    assert layers == ["Flatten"] + 2 * ["Linear", "ReLU", "BatchNorm1d", "Dropout"]
    assert [type(layer).__name__ for layer in mlp((4,), (3,))] == ["Flatten", "Linear", "ReLU"]


@pytest.mark.parametrize("sizes", [[3, 3, 3], [2, 4, 1]], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", [0, 1], ids=["multi", "sliced"])
def test_a_task_per_example_gives_the_rows_of_a_task_per_batch(kind, sizes):
    head, x = heads(sizes)[kind], features()
    mixed = head(x, TASKS)
    assert mixed.shape == (len(x), max(sizes))
    for row, task in enumerate(TASKS.tolist()):
        alone = head(x, task)
        assert alone.shape == (len(x), sizes[task])
        torch.testing.assert_close(mixed[row, : sizes[task]], alone[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [0, 1], ids=["multi", "sliced"])
def test_outputs_that_a_task_does_not_have_are_minus_infinity_and_give_finite_gradients(kind):
    head, sizes = heads([2, 4, 1])[kind], [2, 4, 1]
    outputs = head(features(), TASKS)
    for row, task in enumerate(TASKS.tolist()):
        assert outputs[row].isneginf().tolist() == [False] * sizes[task] + [True] * (4 - sizes[task])
    nn.functional.cross_entropy(outputs, torch.zeros_like(TASKS)).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert any((p.grad != 0).any() for p in head.parameters())


def test_a_head_that_a_batch_does_not_use_gets_no_gradient():
    head = MultiHead(6, [3, 3, 3]).double()
    head(features(), 1).sum().backward()
    assert all(p.grad is not None for p in head.heads[1].parameters())
    assert all(p.grad is None for p in [*head.heads[0].parameters(), *head.heads[2].parameters()])


def test_a_head_whose_task_is_not_in_a_mixed_batch_gets_a_gradient_of_zero():
    head = MultiHead(6, [3, 3, 3]).double()
    head(features(), torch.tensor([0, 2, 2, 0, 0])).sum().backward()
    assert all((p.grad == 0).all() for p in head.heads[1].parameters())


@pytest.mark.parametrize(
    ("slices", "outputs"),
    [([(0, 2), (2, 4)], 4), ([(0, 2), (0, 4)], 4), ([(0, 5), (0, 5)], 5), ([(0, 1), (1, 4)], 4)],
    ids=["task", "class", "domain", "unequal"],
)
def test_a_sliced_head_gives_its_columns_of_one_layer(slices, outputs):
    head, x = SlicedHead(6, slices).double(), features()
    assert head.linear.out_features == outputs
    for task, (start, stop) in enumerate(slices):
        assert torch.equal(head(x, task), head.linear(x)[:, start:stop])


def test_columns_that_do_not_compete_get_a_gradient_of_zero():
    head = SlicedHead(6, [(0, 2), (2, 5)]).double()
    head(features(), 1).sum().backward()
    assert (head.linear.weight.grad[:2] == 0).all()
    assert (head.linear.weight.grad[2:] != 0).all()


@pytest.mark.parametrize("kind", [0, 1], ids=["multi", "sliced"])
def test_the_state_of_a_head_is_its_weights_alone(kind):
    head = heads([2, 4, 1])[kind]
    assert set(head.state_dict()) == {name for name, _ in head.named_parameters()}


def test_a_net_is_its_head_on_its_body():
    net = Net(mlp((4,), (6,)), MultiHead(6, [2, 3]))
    x = torch.randn(5, 4)
    assert torch.equal(net(x, 1), net.head.heads[1](net.body(x)))


@pytest.mark.parametrize("training", [True, False])
def test_measuring_features_restores_the_mode_and_leaves_statistics_alone(training):
    body = mlp((4,), (3,), batch_norm=True).train(training)
    before = {name: t.clone() for name, t in body.state_dict().items()}
    features_of(body, (4,))
    assert all(module.training is training for module in body.modules())
    assert all(torch.equal(t, before[name]) for name, t in body.state_dict().items())


def test_measuring_features_restores_the_mode_of_every_part():
    body = mlp((4,), (3,), batch_norm=True).train()
    body[3].eval()
    features_of(body, (4,))
    assert [module.training for module in body] == [True, True, True, False]


def test_measuring_features_restores_the_mode_where_the_body_fails():
    body = mlp((4,), (3,)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        features_of(body, (5,))
    assert all(module.training for module in body.modules())


def test_a_body_that_does_not_flatten_is_told_to():
    with pytest.raises(ValueError, match=r"gives \(2, 8, 6, 6\) for 2 inputs; .* flatten it"):
        features_of(nn.Conv2d(1, 8, 3), (1, 8, 8))
