"""Networks: leading dimensions, initial weights, errors."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tarspyro import Conditional
from tarspyro.nn import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    event_ndims,
    fold,
    initialize,
    spread_kinks,
    unfold,
)

NETWORKS = {
    "MLP": (lambda: MLP(6, [5, 4]), [(6,)], (4,)),
    "MLP of images": (lambda: MLP((1, 8, 8), [5], activation=nn.Tanh), [(1, 8, 8)], (5,)),
    "MLP of two inputs": (lambda: MLP([(1, 8, 8), 10], [5]), [(1, 8, 8), (10,)], (5,)),
    "MLP with batch norm": (
        lambda: MLP(6, [5], normalization=nn.BatchNorm1d, dropout=0.5),
        [(6,)],
        (5,),
    ),
    "ConvEncoder 28": (lambda: ConvEncoder((1, 28, 28), [4, 8]), [(1, 28, 28)], (8 * 7 * 7,)),
    "ConvEncoder 8": (lambda: ConvEncoder((1, 8, 8), [4, 8]), [(1, 8, 8)], (8 * 2 * 2,)),
    "ConvEncoder odd": (
        lambda: ConvEncoder((3, 9, 5), [4, 8], normalization=nn.BatchNorm2d),
        [(3, 9, 5)],
        (8 * 3 * 2,),
    ),
    "ConvDecoder 28": (lambda: ConvDecoder(2, (1, 28, 28), [8, 4]), [(2,)], (4, 28, 28)),
    "ConvDecoder 8": (
        lambda: ConvDecoder(2, (1, 8, 8), [8, 4], normalization=nn.BatchNorm2d),
        [(2,)],
        (4, 8, 8),
    ),
    "ConvDecoder odd": (lambda: ConvDecoder(2, (3, 9, 5), [8, 4]), [(2,)], (4, 9, 5)),
    "ConvDecoder of two": (
        lambda: ConvDecoder([2, 10], (1, 8, 8), [8, 4]),
        [(2,), (10,)],
        (4, 8, 8),
    ),
    "ConvDecoder 28x20": (lambda: ConvDecoder(2, (1, 28, 20), [8, 4]), [(2,)], (4, 28, 20)),
}


@pytest.mark.parametrize(("build", "shapes", "out"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 1, 3), ()], ids=str)
def test_leading_dimensions_are_a_batch(build, shapes, out, lead):
    network = build().eval()
    inputs = [torch.randn(*lead, *shape) for shape in shapes]
    output = network(*inputs)
    assert output.shape == (*lead, *out)
    rows = [value.reshape(-1, *shape) for value, shape in zip(inputs, shapes, strict=True)]
    torch.testing.assert_close(output.reshape(-1, *out), network(*rows))


@pytest.mark.parametrize(("build", "shapes", "out"), NETWORKS.values(), ids=NETWORKS)
def test_flat_inputs_give_the_same(build, shapes, out):
    network = build().eval()
    inputs = [torch.randn(3, *shape) for shape in shapes]
    torch.testing.assert_close(
        network(*inputs), network(*[value.flatten(1) for value in inputs])
    )
    assert str(network).startswith(type(network).__name__)


@pytest.mark.parametrize(("build", "shapes", "out"), NETWORKS.values(), ids=NETWORKS)
def test_every_parameter_gets_a_gradient(build, shapes, out):
    network = build()
    network(*[torch.randn(4, *shape) for shape in shapes]).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_batch_norm_takes_all_particles_as_one_batch():
    network = MLP(3, [4], normalization=nn.BatchNorm1d)
    x = torch.randn(7, 5, 3)
    expected = network.layers(x.reshape(35, 3)).reshape(7, 5, 4)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    "leads",
    [((5, 10), (10,)), ((5, 1), (10,)), ((), (10,)), ((5, 1, 1), (10, 1), (4,))],
    ids=str,
)
@pytest.mark.parametrize("normalization", [None, nn.BatchNorm1d], ids=["plain", "batch norm"])
def test_inputs_broadcast_their_leading_dimensions(leads, normalization):
    shapes = [2, (1, 3), 4][: len(leads)]
    network = MLP(shapes, [6, 5], normalization=normalization)
    events = [shape if isinstance(shape, tuple) else (shape,) for shape in shapes]
    inputs = [torch.randn(*lead, *event) for lead, event in zip(leads, events, strict=True)]
    both = torch.broadcast_shapes(*leads)
    expanded = [
        value.expand(*both, *event) for value, event in zip(inputs, events, strict=True)
    ]
    torch.testing.assert_close(network(*inputs), network(*expanded))
    seen = []
    network.layers[1].register_forward_hook(
        lambda module, given, output: seen.append(given[0].shape)
    )
    Conditional(dist.Normal, network, 2)(*inputs)
    assert seen == [(torch.Size(both).numel(), 6)]
    assert network(*inputs).shape == (*both, 5)


def test_shared_inputs_are_computed_once():
    network = MLP([784, 10], [50])
    x, y = torch.randn(20, 784), torch.eye(10).unsqueeze(1)
    q = Conditional(dist.Normal, network, 2)
    first = 2 * 50 * (20 * 784 + 10 * 10)
    counts = {
        (network, x, y): first,
        (network, x.expand(10, 20, 784), y.expand(10, 20, 10)): 2 * 50 * 200 * 794,
    }
    counts[q, x, y] = first + 2 * 200 * 50 * 4
    for (function, *inputs), expected in counts.items():
        with FlopCounterMode(display=False) as counter:
            function(*inputs)
        assert counter.get_total_flops() == expected


def test_fold_and_unfold_are_inverse():
    value = torch.randn(2, 3, 4)
    (flat,), lead = fold([value], [1])
    assert flat.shape == (6, 4) and torch.equal(unfold(flat, lead), value)
    (single,), lead = fold([torch.randn(4)], [(4,)])
    assert single.shape == (1, 4) and unfold(single, lead).shape == (4,)


@pytest.mark.parametrize(
    ("network", "ndims"),
    [
        (nn.Linear(3, 2), 1),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3)), 3),
        (nn.Sequential(nn.Conv1d(1, 2, 3)), 2),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), 1),
        (nn.GRUCell(3, 2), 1),
        (nn.Embedding(10, 2), 0),
        (nn.Sequential(nn.BatchNorm2d(3)), 3),
        (nn.ReLU(), None),
        (nn.LSTM(3, 2), None),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), None),
        (nn.Sequential(MLP((1, 8, 8), [8]), nn.Linear(8, 2)), 3),
        (nn.Sequential(nn.Dropout(0.1), nn.Linear(3, 2)), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_event_ndims(network, ndims):
    assert event_ndims(network) == ndims


def test_initial_weights_keep_the_size_of_activations():
    torch.manual_seed(0)
    network = MLP(500, [500] * 10)
    h = network(torch.randn(2000, 500))
    # Without the right variance ten layers shrink it by six to the tenth power.
    assert 0.5 < h.square().mean() < 2.0
    conv = initialize(
        nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=1), nn.ReLU()
    )
    image = conv(torch.randn(8, 64, 16, 16).relu())
    assert 0.5 < image[:, :, 2:-2, 2:-2].square().mean() < 2.0
    assert not conv.bias.any()


def test_units_bend_at_the_points_evenly():
    torch.manual_seed(0)
    x = 10 * torch.randn(4, 3)
    network = spread_kinks(MLP(3, [2000, 5]), x)
    at_points = network.layers[0](x)  # a unit for each column, a point for each row
    nearest = at_points.abs().argmin(0)
    assert at_points.gather(0, nearest[None]).abs().max() < 1e-4
    shares = nearest.bincount(minlength=4) / 2000
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert not network.layers[2].bias.any()


def test_spread_kinks_see_what_lies_on_a_ray():
    """The best weights of the units explain a sine on [4, 6], where zero biases leave a line."""
    torch.manual_seed(0)
    x = torch.linspace(4, 6, 400, dtype=torch.float64)[:, None]
    y = (3 * x).sin()

    def left_over(network):
        h = network(x).detach()
        weights = torch.linalg.lstsq(h, y, driver="gelsd").solution
        return ((h @ weights - y).square().mean() / y.square().mean()).item()

    line = (y.square().mean() - (x * y).mean() ** 2 / x.square().mean()) / y.square().mean()
    assert math.isclose(left_over(MLP(1, [200]).double()), line.item(), rel_tol=1e-6)
    assert left_over(spread_kinks(MLP(1, [200]).double(), x)) < 1e-4


def test_without_hidden_layers_the_conditional_is_linear():
    trunk = MLP([(4, 5), 3], [])
    x, y = torch.randn(7, 2, 4, 5), torch.randn(2, 3)
    assert repr(trunk) == "MLP(23)" and not list(trunk.parameters())
    assert torch.equal(trunk(x, y), torch.cat([x.flatten(2), y.expand(7, 2, 3)], -1))


def test_errors():
    with pytest.raises(ValueError, match="x must be of shape .N, 3., .* got .5, 2."):
        spread_kinks(MLP(3, [2]), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="linear layer with biases, got"):
        spread_kinks(MLP(3, []), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(\*, 3\), got \(2, 4\)"):
        MLP(3, [2])(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"takes 2 input\(s\), got 1"):
        MLP([3, 2], [2])(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="channels, height, width"):
        ConvEncoder((28, 28))
    with pytest.raises(ValueError, match="in_shape must be .* 3 layers can halve, got"):
        ConvEncoder((1, 2, 2), [1, 2, 3])
    with pytest.raises(
        ValueError, match=r"\(\*, 1, 28, 28\) or \(\*, 784\), got \(5, 28, 28\)"
    ):
        ConvEncoder((1, 28, 28))(torch.zeros(5, 28, 28))
    with pytest.raises(ValueError, match=r"parameter of shape \(63,\)"):
        ConvDecoder(2, (1, 8, 8)).head((63,))


@pytest.mark.parametrize("hidden", [[], [5]])
@pytest.mark.parametrize(
    "leads", [[(), ()], [(4,), (4,)], [(6, 4), (6, 4)], [(6, 4), (4,)], [(0,), (0,)]]
)
def test_an_mlp_of_several_inputs_is_that_of_their_elements_in_a_row(leads, hidden):
    network = MLP([(2, 3), 1], hidden)
    first = torch.randn(*leads[0], 2, 3)
    second = torch.randn(*leads[1], 1)
    lead = torch.broadcast_shapes(*leads)

    together = torch.cat([first.expand(*lead, 2, 3).flatten(-2), second.expand(*lead, 1)], -1)

    assert torch.allclose(network(first, second), network.layers(together), atol=1e-6)


def test_an_mlp_takes_data_points_that_are_numbers():
    network = MLP((), [4])
    assert network(torch.zeros(5)).shape == (5, 4)
    assert network(torch.zeros(3, 5)).shape == (3, 5, 4)
    same = MLP(1, [4])
    same.load_state_dict(network.state_dict())
    x = torch.randn(5)
    torch.testing.assert_close(network(x), same(x.unsqueeze(-1)))
    with pytest.raises(ValueError, match=r"x\.unsqueeze\(-1\), or make an MLP\(\(\)\)"):
        same(x)
