"""Convolutional networks: every size, kernel and depth, mirrored exactly, and their normalization."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import IWAE
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder, ResidualBlock, initialize

SIZES = [(5, 7), (1, 9), (2, 31), (8, 8), (28, 20), (33, 32), (128, 128)]
WINDOWS = [
    {},
    {"kernel_size": 5},
    {"kernel_size": 4},
    {"kernel_size": 5, "stride": 3},
    {"stride": [1, 2, 1]},
    {"kernel_size": [3, 5, 4], "stride": [2, 1, 2]},
]
NORMALIZATIONS = ["batch", "group", "layer", nn.BatchNorm2d]


def reverse(options):
    """The options of the decoder that mirrors an encoder."""
    return {
        name: value[::-1] if isinstance(value, list) else value
        for name, value in options.items()
    }


def maps(network, value):
    """The sizes of the maps between the layers."""
    sizes = []
    kinds = (nn.Conv2d, nn.Unflatten, nn.ConvTranspose2d)
    for layer in network.layers:
        value = layer(value)
        if isinstance(layer, kinds):
            sizes.append(tuple(value.shape[1:]))
    return sizes


@pytest.mark.parametrize("options", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_decoder_mirrors_the_encoder(size, options):
    shape = (3, *size)
    try:
        encoder = ConvEncoder(shape, [4, 6, 8], **options)
    except ValueError as error:
        assert min(size) <= 8 and "give fewer channels" in str(error)
        return
    decoder = ConvDecoder(2, shape, [8, 6, 4], **reverse(options))
    down = maps(encoder, torch.randn(2, *shape))
    up = maps(decoder, torch.randn(2, 2))
    assert up == [*down[::-1], (4, *size)]
    assert encoder(torch.randn(2, *shape)).shape == (2, encoder.out_features)
    assert decoder(torch.randn(5, 2, 2)).shape == (5, 2, 4, *size)
    assert encoder.out_features == torch.Size(down[-1]).numel()


def test_a_decoder_of_a_code_and_a_label_is_one_of_both_side_by_side():
    decoder = ConvDecoder([2, 10], (3, 8, 8), [8, 4])
    together = ConvDecoder(12, (3, 8, 8), [8, 4])
    together.load_state_dict(decoder.state_dict())
    z, y = torch.randn(5, 1, 2), torch.eye(10)
    expected = together(torch.cat([z.expand(5, 10, 2), y.expand(5, 10, 10)], -1))
    torch.testing.assert_close(decoder(z, y), expected)
    assert repr(decoder) == repr(together)
    with pytest.raises(ValueError, match=r"takes 2 input\(s\), got 1"):
        decoder(torch.zeros(5, 12))
    with pytest.raises(ValueError, match="number of in_features must be at least 1, got 0"):
        ConvDecoder([], (3, 8, 8))
    with pytest.raises(TypeError, match="in_features must be a whole number"):
        ConvDecoder([2, "10"], (3, 8, 8))


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_every_pixel_is_seen(options):
    for height, width in itertools.product(range(13, 17), range(13, 17)):
        image = torch.randn(1, 1, height, width, requires_grad=True)
        layers = ConvEncoder((1, height, width), [2, 2, 2], **options).layers
        linear = nn.Sequential(*[layer for layer in layers if isinstance(layer, nn.Conv2d)])
        (gradient,) = torch.autograd.grad(linear(image).square().sum(), image)
        assert (gradient != 0).all()


def test_a_window_that_would_miss_pixels_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be at least 3 for a stride of 2"):
        ConvEncoder((1, 8, 8), [4], kernel_size=2)
    with pytest.raises(ValueError, match="at least 5 for a stride of 3.*got 3"):
        ConvDecoder(2, (1, 8, 8), [4, 4], stride=[1, 3])
    with pytest.raises(ValueError, match=r"stride must be a number, or 2 of them.*got \[2\]"):
        ConvEncoder((1, 8, 8), [4, 4], stride=[2])
    with pytest.raises(TypeError, match="residual must be a whole number, got 0.5"):
        ConvEncoder((1, 8, 8), [4, 4], residual=0.5)
    with pytest.raises(TypeError, match="'batch', 'group', 'layer' or the constructor"):
        ConvEncoder((1, 8, 8), [4, 4], normalization="instance")


def test_depth_by_strides_of_one():
    channels = [4] * 12
    strides = [2, 1, 1] * 4
    encoder = ConvEncoder((3, 5, 7), channels, stride=strides[:9] + [1] * 3)
    assert encoder.out_features == 4
    # The same network without the strides cannot halve so often.
    with pytest.raises(ValueError, match="12 layers can halve"):
        ConvEncoder((3, 5, 7), channels)
    ConvEncoder((3, 16, 9), channels, stride=strides, residual=1)(torch.zeros(1, 3, 16, 9))


def test_residual_blocks_start_as_the_identity():
    torch.manual_seed(0)
    plain = ConvEncoder((3, 8, 8), [4, 8])
    deep = ConvEncoder((3, 8, 8), [4, 8], residual=3, normalization=None)
    weights = iter(plain.state_dict().values())
    with torch.no_grad():
        for layer in deep.layers:
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(next(weights))
                layer.bias.copy_(next(weights))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(deep(x), plain(x))

    # It is no identity for long: gradients reach the zero weights, then all others.
    block = ResidualBlock(4, activation=nn.SiLU, normalization="layer")
    x = torch.randn(2, 4, 5, 5)
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        block(x).square().sum().backward()
        optimizer.step()
    assert all(p.grad.any() for p in block.parameters())
    first, second = (layer for layer in block.layers if isinstance(layer, nn.Conv2d))
    hidden = first(nn.functional.silu(block.layers[0](x)))
    expected = x + second(nn.functional.silu(block.layers[3](hidden)))
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=str)
def test_normalization_is_what_its_name_says(normalization):
    torch.manual_seed(0)
    network = ConvEncoder((3, 8, 8), [16], normalization=normalization, activation=nn.Identity)
    convolution, *_ = network.layers
    x = torch.randn(6, 3, 8, 8)
    h = convolution(x)
    if normalization == "group":
        groups = h.reshape(6, 2, -1)
        expected = (groups - groups.mean(-1, True)) / groups.std(
            -1, correction=0, keepdim=True
        )
    elif normalization == "layer":
        rows = h.reshape(6, -1)
        expected = (rows - rows.mean(-1, True)) / rows.std(-1, correction=0, keepdim=True)
    else:
        axes = (0, 2, 3)
        expected = (h - h.mean(axes, True)) / h.std(axes, correction=0, keepdim=True)
    assert torch.allclose(network(x), expected.reshape(6, -1), atol=1e-3)


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=str)
def test_a_normalized_pair_trains_with_particles_and_a_last_batch_of_one_row(normalization):
    torch.manual_seed(0)
    x = torch.rand(21, 3, 8, 8)
    options = {"normalization": normalization, "residual": 1}
    # The smallest map is a single pixel: in a batch of one row a channel has one value.
    decoder = ConvDecoder(2, (3, 8, 8), [8, 8, 8], **options)
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Normal, decoder, (3, 8, 8), scale=0.3)
    )
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder((3, 8, 8), [8, 8, 8], **options), 2))
    history = fit(
        p, q, x, loss=IWAE(num_particles=3), batch_size=20, epochs=2, seed=0, progress=False
    )
    assert torch.tensor(history["loss"]).isfinite().all()
    found = evaluate.log_likelihood(p, q, x, num_particles=5, seed=0)
    alone = evaluate.log_likelihood(p, q, x[:1], num_particles=5, seed=0)
    assert found.isfinite().all() and alone.isfinite().all()
    # Particles are folded into one batch.
    p.train()
    z = torch.randn(4, 5, 2)
    folded = decoder(z.reshape(20, 2)).reshape(4, 5, 8, 8, 8)
    assert torch.allclose(decoder(z), folded, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "event"),
    [
        (lambda: MLP(3, [4], normalization=nn.BatchNorm1d), (3,)),
        (lambda: ConvEncoder((3, 1, 2), [4], normalization=nn.BatchNorm2d), (3, 1, 2)),
    ],
    ids=["vector", "map"],
)
def test_one_value_is_normalized_by_the_running_statistics(network, event):
    torch.manual_seed(0)
    network = network()
    network(torch.randn(10, *event))
    x = torch.randn(1, *event)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = network(x)
    assert all(
        torch.equal(value, before[name]) for name, value in network.state_dict().items()
    )
    assert torch.equal(trained, network.eval()(x))
    # Two rows have statistics of their own.
    two = network.train()(torch.randn(2, *event))
    assert not torch.equal(before["layers.1.running_mean"], network.layers[1].running_mean)
    assert two.isfinite().all()


def test_networks_of_earlier_versions_are_the_same():
    """Names of weights, and numbers, as they were before kernels and strides were options."""
    torch.manual_seed(0)
    encoder = ConvEncoder((3, 9, 5), [4, 8], normalization=nn.BatchNorm2d)
    decoder = ConvDecoder(2, (3, 9, 5), [8, 4])
    initialize(decoder.layers, nn.ReLU())  # their initial weights were others
    layers = [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")]
    assert [*encoder.state_dict()][:4] == layers
    assert {name.split(".")[1] for name in encoder.state_dict()} == {"0", "1", "3", "4"}
    assert {name.split(".")[1] for name in decoder.state_dict()} == {"0", "3", "5"}
    assert sum(p.double().abs().sum().item() for p in encoder.parameters()) == pytest.approx(
        99.40785848685482, rel=1e-9
    )
    assert encoder(torch.ones(2, 3, 9, 5)).double().sum().item() == pytest.approx(41.445559)
    assert decoder(torch.ones(2, 2)).double().sum().item() == pytest.approx(193.475903)
